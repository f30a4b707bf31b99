"""Per-example gradients of convolution weights, in the cheapest exact form for their shape."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.kernels import conv_dispatch, conv_tuning
from pyengm.kernels.conv_shape import HALF, ConvShape
from pyengm.ops import conv_direct_sqnorm, conv_gradients, conv_gram_sqnorm
from pyengm.pergrad.per_example_grad import (
    CHUNK_ELEMENTS,
    STORED,
    DenseGrad,
    OuterProductGrad,
    PerExampleGrad,
    row_squares,
)

GRAM_PRODUCT = 1.2  # cost of a product of the Gram form, in products of the direct form; measured on AVX-512


@dataclass(frozen=True)
class Geometry:
    """The arguments of a convolution; a transposed one swaps the roles of input and output gradient."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Flat(NamedTuple):
    """Arguments of the kernels: a convolution of two dimensions, one image and one group a row."""

    x: Tensor  # (n groups, C, H, W)
    g: Tensor  # (n groups, O, Ho, Wo)
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def has_kernels(self) -> bool:
        """Whether the ops run native kernels here; elsewhere they would unfold all images at once."""
        if self.x.is_cuda:
            return conv_dispatch.supports(self.x, self.g, self[2:])
        return self.x.device.type == "cpu"

    def gram_is_cheaper(self) -> bool:
        """Pairs of pixels times channels, against pixels times the weight; strides split x into phases."""
        if self.x.is_cuda:
            return conv_tuning.gram_is_cheaper(ConvShape.of(*self))
        _, c, *size = self.x.shape
        _, o, *out = self.g.shape
        phases = math.prod(min(s, k) for s, k in zip(self.stride, self.kernel, strict=True))
        pixels = math.prod(math.ceil((i + 2 * p) / s) for i, p, s in zip(size, self.padding, self.stride, strict=True))
        t = math.prod(out)
        return GRAM_PRODUCT * (phases * pixels**2 * c + t**2 * o) / 2 < math.prod(self.kernel) * c * o * t


class ChannelsInnermost(DenseGrad):
    """values (n, O, C, *kernel), in memory (n, O, *kernel, C), as GPU kernels store them."""

    def weighted(self, weights: Tensor) -> Tensor:
        values = self.values.movedim(2, -1)
        return (weights.to(values) @ values.flatten(1)).view(values.shape[1:]).movedim(-1, 1)


class ConvGrad(PerExampleGrad):
    """x (n, U, C, *positions in), g (n, U, O, *positions out): U images of each example.

    Operands of 16 bits go to the kernels of a GPU as they are, and become float32 elsewhere; so are all results.
    """

    def __init__(self, x: Tensor, g: Tensor, weight: Tensor, geometry: Geometry):
        self.n, self.shape = len(x), weight.shape
        if not (x.is_cuda and len(self.shape) in (3, 4)):
            x, g = _wide(x), _wide(g)
        self.x, self.g, self.weight, self.geometry = x, g, weight, geometry

    def stored(self) -> PerExampleGrad:
        if self.n * self.shape.numel() > STORED * (self.x.numel() + self.g.numel()):
            return self
        flat = self._flat()
        if flat is None or not flat.has_kernels():
            return DenseGrad(self.dense(slice(None)))
        squares, gradients = conv_gradients(*flat)
        store = ChannelsInnermost if gradients.is_cuda else DenseGrad
        return store(gradients.view(self.n, *self.shape), known_squares=squares.view(self.n, -1).sum(1))

    def squares(self) -> Tensor:
        flat = self._flat()
        if flat is not None and flat.has_kernels():
            squares = (conv_gram_sqnorm if flat.gram_is_cheaper() else conv_direct_sqnorm)(*flat)
            return squares.view(self.n, -1).sum(1)
        if flat is not None:
            squares = torch.cat([part.squares() for part in _unfolded(flat)])
            return squares.view(self.n, -1).sum(1)
        return torch.cat([row_squares(self.dense(slice(i, i + 1))) for i in range(self.n)])

    def dense(self, examples: slice) -> Tensor:
        part = ConvGrad(self.x[examples], self.g[examples], self.weight, self.geometry)
        flat = part._flat()
        if flat is not None and flat.has_kernels():
            return conv_gradients(*flat)[1].view(-1, *self.shape)
        if flat is not None:
            return torch.cat([piece.dense(slice(None)) for piece in _unfolded(flat)]).view(-1, *self.shape)
        pairs = zip(part.g, part.x, strict=True)  # torch's kernel supports every geometry, but sums over its batch
        return torch.stack([self._weight_gradient(g, x) for g, x in pairs])

    def weighted(self, weights: Tensor) -> Tensor:
        x, g = self.x, self.g
        if x.dtype == torch.float16:  # whose range a weighted gradient may leave
            x, g = _wide(x), _wide(g)
        w = weights.to(_wide(x[:0])).view(-1, *[1] * (x.dim() - 1))
        x, g = ((x * w).to(g), g) if x.numel() < g.numel() else (x, (g * w).to(x))
        return _wide(self._weight_gradient(g.flatten(0, 1), x.flatten(0, 1)))

    @classmethod
    def joined(cls, uses: Sequence["ConvGrad"]) -> "ConvGrad | None":
        first = uses[0]
        if any((use.geometry, use.x.shape[2:]) != (first.geometry, first.x.shape[2:]) for use in uses):
            return None
        x, g = (torch.cat([getattr(use, name) for use in uses], 1) for name in "xg")
        return cls(x, g, first.weight, first.geometry)

    def input_shape(self) -> tuple[int, int]:
        """Groups of input channels, and the elements of a patch of one."""
        return self.geometry.groups, self.shape[1:].numel()

    def features(self, basis: Tensor) -> Tensor:
        """patch Q, (n, G, T, rank), for a basis Q (G, I, rank); T positions of all images of an example."""
        k, x = self.geometry, _wide(self.x)
        rows = basis.mT.reshape(-1, *self.shape[1:])
        y = torch.ops.aten.convolution(
            x.flatten(0, 1), rows, None, k.stride, k.padding, k.dilation, False, k.output_padding, k.groups
        )
        return self._by_group(y.view(*x.shape[:2], *y.shape[1:])).mT

    def input_products(self, y: Tensor) -> Tensor:
        """The sum over all positions of patch^T y, (G, I, rank), for y (n, G, T, rank)."""
        rank, channels = y.shape[3], y.shape[1] * y.shape[3]
        images = y.mT.reshape(self.n, channels, self.x.shape[1], *self.g.shape[3:]).transpose(1, 2).flatten(0, 1)
        weight = self.weight.new_empty(channels, *self.shape[1:])
        rows = self._weight_gradient(images, _wide(self.x).flatten(0, 1), weight)
        return rows.reshape(self.geometry.groups, rank, -1).mT

    def along_features(self, y: Tensor) -> Tensor:
        """The gradients times Q, (n, O, rank), for the input times Q (n, G, T, rank)."""
        return (self.outputs(self.g) @ y).flatten(1, 2)

    @staticmethod
    def along(values: Tensor, basis: Tensor) -> Tensor:
        """Given gradients (m, *shape) times Q, (m, O, rank)."""
        groups, inputs, _ = basis.shape
        return (values.to(basis).reshape(len(values), groups, -1, inputs) @ basis).flatten(1, 2)

    def outputs(self, t: Tensor) -> Tensor:
        """(m, U, O, *positions) -> (m, G, O / G, T)."""
        return self._by_group(_wide(t))

    def _by_group(self, t: Tensor) -> Tensor:
        """(m, U, channels, *positions) -> (m, G, channels / G, T)."""
        return t.flatten(3).transpose(1, 2).flatten(2).unflatten(1, (self.geometry.groups, -1))

    def _weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Summed over the batch, by torch."""
        k, weight = self.geometry, self.weight if weight is None else weight
        return torch.ops.aten.convolution_backward(
            g, x, weight.to(x.dtype), None, k.stride, k.padding, k.dilation, k.transposed, k.output_padding,
            k.groups, (False, True, False),
        )[1]  # fmt: skip

    def _flat(self) -> Flat | None:
        """As one image a row, for convolutions of one and two dimensions."""
        k = self.geometry
        x, g = (self.g, self.x) if k.transposed else (self.x, self.g)
        window = [self.shape[2:], k.stride, k.padding, k.dilation]
        if len(self.shape) == 3:  # an image of height one
            x, g = x.unsqueeze(3), g.unsqueeze(3)
            window = [(fill, *pair) for fill, pair in zip((1, 1, 0, 1), window, strict=True)]
        elif len(self.shape) != 4:
            return None
        if k.transposed:
            g = _with_all_windows(x, g, window)
        if x.shape[1] > 1:
            x, g = _stacked(x, g, window[1][0], window[2][0])
        x, g = (t.squeeze(1).unflatten(1, (k.groups, -1)).flatten(0, 1) for t in (x, g))
        return Flat(x, g, *window)


def _unfolded(flat: Flat) -> Iterator[OuterProductGrad]:
    """As matrix products over unfolded images, a block of them at a time; elsewhere than on the CPU."""
    step = max(1, CHUNK_ELEMENTS // (math.prod(flat.kernel) * flat.x.shape[1] * flat.g.shape[2:].numel()))
    for x, g in zip(_wide(flat.x).split(step), _wide(flat.g).split(step), strict=True):
        patches = F.unfold(x, flat.kernel, flat.dilation, flat.padding, flat.stride)  # (m, I, T)
        shape = torch.Size((g.shape[1], patches.shape[1]))
        yield OuterProductGrad(g.flatten(2).mT[:, None], patches.mT[:, None], shape)  # (m, O, I)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in HALF else t


def _with_all_windows(x: Tensor, g: Tensor, window: Sequence[Sequence[int]]) -> Tensor:
    """g with zeros for the windows of x beyond its own: output_padding of the stride or more makes room for some."""
    missing = []
    for size, own, kernel, stride, padding, dilation in zip(x.shape[3:], g.shape[3:], *window, strict=True):
        missing.append((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 - own)
    return F.pad(g, (0, missing[1], 0, missing[0])) if any(missing) else g


def _stacked(x: Tensor, g: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """U images of an example below each other as one, so far apart that no window sees two of them."""
    used, height = x.shape[1], x.shape[3]
    apart = math.ceil((height + padding) / stride) * stride
    last = (used - 1) * apart + height
    x = F.pad(x, (0, 0, 0, apart - height)).transpose(1, 2).flatten(2, 3)[:, :, :last]
    rows = apart // stride
    last = (used - 1) * rows + g.shape[3]
    g = F.pad(g, (0, 0, 0, rows - g.shape[3])).transpose(1, 2).flatten(2, 3)[:, :, :last]
    return x.unsqueeze(1), g.unsqueeze(1)
