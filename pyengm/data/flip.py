"""Which images may be flipped, and which of them are."""

from pathlib import Path

import torch
from torch import Tensor

from pyengm.ops import Purpose, philox_uniform

# May an image be flipped? A flipped cat or coat is still one, a flipped 2 is no digit; of arrays we do not know.
AUGMENT = {
    "digits": False,
    "mnist": False,
    "svhn": False,
    "cifar10": True,
    "cifar100": True,
    "fashionmnist": True,
    "folder": True,
    "arrays": False,
}


def may_flip(name: str) -> bool:
    """The policy for the data set `name`; an absolute path is a folder, an unknown name is arrays."""
    return AUGMENT.get(name, AUGMENT["folder" if Path(name).is_absolute() else "arrays"])


def draw_flip(index: Tensor, *, seed: int, epoch: int, flip: bool = True) -> Tensor:
    """Which of the images `index` (n,) int64 are flipped, (n,) bool: each with probability 1/2, or none at all."""
    if not flip:
        return torch.zeros_like(index, dtype=torch.bool)
    return philox_uniform(index, (1,), seed=seed, purpose=Purpose.FLIP, epoch=epoch)[:, 0] < 0.5
