"""Random perturbations that methods start from."""

import torch
from torch import Tensor

from pyengm.ops import Key, Purpose, philox_normal, philox_uniform


def gaussian_start(x: Tensor, key: Key, std: float = 0.001) -> Tensor:
    """Images with normal noise.

    Args:
        x: (n, ...) images in [0, 1].
        key: The random numbers to use.
        std: The standard deviation of the noise, in pixel units.

    Returns:
        (n, ...), not clipped to [0, 1].
    """
    noise = philox_normal(key.index, x.shape[1:], seed=key.seed, purpose=Purpose.START, epoch=key.epoch)
    return x + std * noise.to(x.dtype)


def random_signs(like: Tensor, key: Key) -> Tensor:
    """-1 or 1 with equal probability for every value of `like` (n, ...), in its shape and type."""
    uniform = philox_uniform(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.SIGN, epoch=key.epoch)
    return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)
