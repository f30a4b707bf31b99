"""Mean distance of the decision boundary."""

import torch
from torch import Tensor, nn

from pyengm.attacks import DeepFool
from pyengm.data import ImageDataset, Loader
from pyengm.evaluation.accuracy import BATCH_SIZE, sharded


def robustness_distance(
    model: nn.Module, data: ImageDataset, *, device: torch.device, attack: DeepFool | None = None
) -> float:
    """rho, the mean L2 distance of images to their DeepFool points.

    A misclassified image counts as 0. Distances are taken before the overshoot and points are not clipped to [0, 1]
    (see `DeepFool`).

    Args:
        model: classifier of images in [0, 1], on `device`.
        data: the images.
        device: device of the model.
        attack: DeepFool() by default.

    Returns:
        The mean distance in pixel units.

    Raises:
        NonFiniteError: outputs or gradients of the model are not finite.

    References:
        Dabouei et al. 2022, Table 5.
    """
    deepfool = attack or DeepFool()

    def distances(part: ImageDataset) -> Tensor:
        batches = Loader(part, BATCH_SIZE, device=device, seed=0, augment="none", shuffle=False).epoch(0)
        return torch.cat([deepfool.distances(model, batch.x, batch.y).double().cpu() for batch in batches])

    return sharded(data, distances).mean().item()
