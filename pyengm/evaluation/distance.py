"""Mean distance of the decision boundary."""

import torch
from torch import Tensor, nn

from pyengm.attacks import DeepFool
from pyengm.data import ImageDataset, Loader
from pyengm.evaluation.accuracy import BATCH_SIZE, sharded
from pyengm.evaluation.resumable import Resumable, compute_batches, settings_of


def robustness_distance(
    model: nn.Module,
    data: ImageDataset,
    attack: DeepFool | None = None,
    *,
    device: torch.device,
    resumable: Resumable | None = None,
) -> float:
    """rho, the mean L2 distance of images to their DeepFool points.

    A misclassified image counts as 0. Distances are taken before the overshoot and points are not clipped to [0, 1]
    (see `DeepFool`).

    Args:
        model: classifier of images in [0, 1], on `device`.
        data: the images.
        attack: DeepFool() by default.
        device: device of the model.
        resumable: where the distances of each batch are kept, so that a later call resumes from them.

    Returns:
        The mean distance in pixel units.

    Raises:
        NonFiniteError: outputs or gradients of the model are not finite.

    References:
        Dabouei et al. 2022, Table 5.
    """
    deepfool = attack or DeepFool()

    def distances(part: ImageDataset) -> Tensor:
        loader = Loader(part, BATCH_SIZE, device=device, seed=0, augment="none", shuffle=False)
        settings = {"batch_size": BATCH_SIZE, "of": "distances"}
        saved = None if resumable is None else resumable.run(attack=settings_of(deepfool), **settings)
        return compute_batches(loader, lambda batch: deepfool.distances(model, batch.x, batch.y).double().cpu(), saved)

    return sharded(data, distances).mean().item()
