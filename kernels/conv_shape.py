"""The shape of a convolution, as far as kernels depend on it; without Triton."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
OPERANDS = (torch.float32, *HALF)
MAX_ELEMENTS = 2**31  # kernels index the elements of one example with 32 bits
Pair = tuple[int, int]
Window = Sequence[Sequence[int]]  # kernel, stride, padding, dilation


@dataclass(frozen=True)
class ConvShape:
    """The shape of one example: batches of any size use the same compiled kernels."""

    x: tuple[int, int, int]  # channels, height, width
    g: tuple[int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        x: Tensor,
        g: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
    ) -> "ConvShape":
        """The shape of a convolution with input x (n, C, H, W) and output gradient g (n, O, Ho, Wo)."""
        _, c, h, w = x.shape
        _, o, ho, wo = g.shape
        return cls((c, h, w), (o, ho, wo), _pair(kernel), _pair(stride), _pair(padding), _pair(dilation), x.dtype)

    @property
    def offsets(self) -> int:
        """The number of offsets of the kernel."""
        return math.prod(self.kernel)

    @property
    def positions(self) -> int:
        """The number of output pixels."""
        return math.prod(self.g[1:])

    @property
    def half(self) -> bool:
        return self.dtype in HALF

    def constants(self) -> dict[str, int]:
        """The constants of the kernels by name."""
        sizes = dict(zip(("C", "H", "W", "CO", "HO", "WO"), self.x + self.g, strict=True))
        pairs = {"K": self.kernel, "S": self.stride, "P": self.padding, "D": self.dilation}
        return sizes | {name + axis: pair[k] for name, pair in pairs.items() for k, axis in enumerate("HW")}


def _pair(values: Sequence[int]) -> Pair:
    a, b = values
    return a, b


def strides(x: Tensor, g: Tensor) -> dict[str, int]:
    """Distances in elements to the next example, channel, row and column, by the names of the kernels' constants."""
    names = [tensor + axis for tensor in ("X", "G") for axis in "NCHW"]
    return dict(zip(names, (*x.stride(), *g.stride()), strict=True))


def channels_innermost(t: Tensor) -> Tensor:
    """t (n, C, H, W) with the channels of a pixel next to each other, as 16-byte copies need it.

    An example whose elements lie too far apart for 32-bit offsets is copied, too: a sequence-first activation, for one.
    """
    _, *sizes = t.shape
    span = sum((size - 1) * step for size, step in zip(sizes, t.stride()[1:], strict=True))
    neighbours = t.stride(1) == 1 or t.shape[1] == 1
    return t if neighbours and span < MAX_ELEMENTS else t.contiguous(memory_format=torch.channels_last)
