"""The training images, as methods are told of them before the first batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DatasetSpec:
    """The training images that a method may keep something for.

    index: (N,) int64, their identities, as in `Key.index`; where several processes run, those of this one.
    shape: (C, H, W) of what a batch shows of them. padding: pixels on each side by which the canvas of an image is
    larger than that. batches: per epoch. seed: of the run. device: where a store is to live.
    """

    index: Tensor
    shape: tuple[int, int, int]
    padding: int = 0
    batches: int = 0
    seed: int = 0
    device: torch.device | str = "cpu"
