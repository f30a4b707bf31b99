"""The shape of a convolution as the kernels see it; Triton is not needed here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
OPERANDS = (torch.float32, *HALF)
Pair = tuple[int, int]
Window = Sequence[Sequence[int]]  # kernel, stride, padding, dilation


@dataclass(frozen=True)
class ConvShape:
    """Of one example: batches of any size share compiled kernels."""

    x: tuple[int, int, int]  # channels, height, width
    g: tuple[int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, g: Tensor, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)) -> "ConvShape":
        window = (tuple(pair) for pair in (kernel, stride, padding, dilation))
        return cls(tuple(x.shape[1:]), tuple(g.shape[1:]), *window, x.dtype)

    @property
    def offsets(self) -> int:
        """Of the kernel."""
        return math.prod(self.kernel)

    @property
    def positions(self) -> int:
        """Output pixels."""
        return math.prod(self.g[1:])

    @property
    def half(self) -> bool:
        return self.dtype in HALF

    def constants(self) -> dict[str, int]:
        """By the names that they have in the kernels."""
        sizes = dict(zip(("C", "H", "W", "CO", "HO", "WO"), self.x + self.g, strict=True))
        pairs = {"K": self.kernel, "S": self.stride, "P": self.padding, "D": self.dilation}
        return sizes | {name + axis: pair[k] for name, pair in pairs.items() for k, axis in enumerate("HW")}


def strides(x: Tensor, g: Tensor) -> dict[str, int]:
    """Steps in elements to the next example, channel, row and column, by the names that they have in the kernels."""
    names = [tensor + axis for tensor in ("X", "G") for axis in "NCHW"]
    return dict(zip(names, (*x.stride(), *g.stride()), strict=True))


def channels_innermost(t: Tensor) -> Tensor:
    """t (n, C, H, W) with the channels of a pixel next to each other: 16-byte copies need it."""
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous(memory_format=torch.channels_last)
