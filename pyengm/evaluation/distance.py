"""How far the decision boundary is."""

import torch
from torch import Tensor, nn

from pyengm.attacks.deepfool import DeepFool
from pyengm.data import ImageDataset, Loader
from pyengm.evaluation.accuracy import BATCH_SIZE, sharded


def robustness_distance(
    model: nn.Module, data: ImageDataset, *, device: torch.device, attack: DeepFool | None = None
) -> float:
    """rho, the mean L2 distance of the images to their DeepFool points (Dabouei et al. 2022, Table 5).

    In pixel units; 0 for a misclassified image, before the overshoot and not clipped to [0, 1] (`DeepFool`).
    attack: None for DeepFool(). Raises NonFiniteError for a model whose outputs or gradients are not finite.
    """
    attack = attack or DeepFool()

    def distances(part: ImageDataset) -> Tensor:
        batches = Loader(part, BATCH_SIZE, device=device, seed=0, augment="none", shuffle=False).epoch(0)
        return torch.cat([attack.distances(model, batch.x, batch.y).double().cpu() for batch in batches])

    return sharded(data, distances).mean().item()
