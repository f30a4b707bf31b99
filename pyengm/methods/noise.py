"""Random points that methods begin at."""

import torch
from torch import Tensor

from pyengm.ops import Key, Purpose, philox_normal, philox_uniform


def near(x: Tensor, key: Key, deviation: float = 0.001) -> Tensor:
    """x (n, ...) plus normal noise of that standard deviation, in pixel units; not clipped."""
    noise = philox_normal(key.index, x.shape[1:], seed=key.seed, purpose=Purpose.START, epoch=key.epoch)
    return x + deviation * noise.to(x.dtype)


def corner(like: Tensor, key: Key) -> Tensor:
    """-1 or 1 (n, ...) for every pixel of every image, each as likely."""
    uniform = philox_uniform(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.SIGN, epoch=key.epoch)
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)
