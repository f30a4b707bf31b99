"""Random orders that depend on nothing but the seed, the epoch and the index of each image."""

import torch
from torch import Tensor

from pyengm.ops import Purpose, philox_uniform


def random_permutation(index: Tensor, *, seed: int, purpose: Purpose, epoch: int = 0) -> Tensor:
    """Positions that put images into a random order.

    Args:
        index: (n,) int64, the indices of the images.
        seed: of the random values.
        purpose: what the order is for; another purpose gives another order.
        epoch: of the random values.

    Returns:
        (n,) int64 on the CPU.
    """
    high, low = philox_uniform(index.cpu(), (2,), seed=seed, purpose=purpose, epoch=epoch).double().unbind(1)
    return torch.argsort(high + low * 2.0**-24, stable=True)  # 48-bit keys: 24 bits tie among 10,000 images
