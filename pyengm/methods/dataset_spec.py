"""The training images, as methods receive them before the first batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DatasetSpec:
    """The training images that a method may keep something for.

    Args:
        index: (N,) int64, the identities of the images, as in `Key.index`; where several processes run, those of the
            images of this process.
        shape: (C, H, W) of an image in a batch.
        padding: The number of pixels by which the canvas of an image is larger than that, on each side.
        batches: The number of batches of an epoch.
        seed: The seed of the run.
        device: The device of what is kept for the images.
        classes: The number of classes.
    """

    index: Tensor
    shape: tuple[int, int, int]
    padding: int = 0
    batches: int = 0
    seed: int = 0
    device: torch.device | str = "cpu"
    classes: int = 10
