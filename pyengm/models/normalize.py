"""Pixel normalisation as a layer, so that attacks and eps stay in pixel units."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyengm.errors import ConfigError, DataError


class Normalize(nn.Module):
    """Maps pixels x to (x - mean) / std, channel by channel; input and output are (n, channels, height, width).

    Args:
        mean: one value per channel, in units of pixels in [0, 1]; a buffer, so checkpoints contain it.
        std: like mean.

    Raises:
        ConfigError: mean and std differ in length, are not finite, or std is not positive.
        DataError: in `forward`, the input has another number of channels or is not floating point.

    Example:
        >>> first = pyengm.models.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> first(torch.full((1, 3, 2, 2), 0.75)).unique()
        tensor([1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = _finite_values("mean", mean), _finite_values("std", std)
        if len(mean) != len(std):
            raise ConfigError(f"mean and std must have one value per channel each, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ConfigError(f"std must be positive, got {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images of pixels in [0, 1]."""
        # Broadcasting would turn one channel into three without an error.
        if x.dim() != 4 or x.shape[1] != len(self.mean) or not x.is_floating_point():
            raise DataError(
                f"expected floating-point pixels in [0, 1] of shape (n, {len(self.mean)}, height, width), "
                f"got {x.dtype} of shape {tuple(x.shape)}; convert the batch or build the model with its in_channels"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"channels={len(self.mean)}"


def _finite_values(label: str, values: Sequence[float]) -> list[float]:
    try:
        converted = [float(v) for v in values]
    except (TypeError, ValueError):
        converted = []
    if not converted or not all(map(math.isfinite, converted)):
        raise ConfigError(f"{label} must be a sequence of finite values, one per channel, got {values!r}")
    return converted
