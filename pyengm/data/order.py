"""Random orders that depend on nothing but the seed, the epoch and the identity of each image."""

import torch
from torch import Tensor

from pyengm.ops import Purpose, philox_uniform


def shuffled(index: Tensor, *, seed: int, purpose: Purpose, epoch: int = 0) -> Tensor:
    """Positions (n,) int64 on the CPU that put the images `index` (n,) into a random order."""
    high, low = philox_uniform(index.cpu(), (2,), seed=seed, purpose=purpose, epoch=epoch).double().unbind(1)
    return torch.argsort(high + low * 2.0**-24, stable=True)  # 48-bit keys: 24 bits tie among 10,000 images
