"""Which data sets allow flips, and which of their images are flipped."""

from pathlib import Path

import torch
from torch import Tensor

from pyengm.ops import Purpose, philox_uniform

# A flipped cat or coat is still one, a flipped 2 is no digit; what arrays show is unknown.
FLIP_ALLOWED = {
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
    """Whether images of the data set `name` may be flipped; an absolute path is a folder, an unknown name is arrays."""
    return FLIP_ALLOWED.get(name, FLIP_ALLOWED["folder" if Path(name).is_absolute() else "arrays"])


def draw_flip(index: Tensor, *, seed: int, epoch: int, flip: bool = True) -> Tensor:
    """Draws which images are flipped, each with probability 1/2.

    Args:
        index: (n,) int64, the indices of the images.
        seed: of the random values.
        epoch: of the random values.
        flip: False for none.

    Returns:
        (n,) bool, on the device of `index`.
    """
    if not flip:
        return torch.zeros_like(index, dtype=torch.bool)
    return philox_uniform(index, (1,), seed=seed, purpose=Purpose.FLIP, epoch=epoch)[:, 0] < 0.5
