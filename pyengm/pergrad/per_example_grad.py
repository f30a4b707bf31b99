"""Per-example gradients of one weight, in the form that a rule finds them: stored, or as factors never multiplied out.

Each form gives squared norms, single examples' gradients and weighted sums over the examples. Shapes: n examples,
T positions, I inputs, O outputs, B independent products (groups, heads). Operands are float32 or float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import TypeGuard

import torch
from torch import Tensor

SMALL = {"cuda": 4096, "cpu": 128}  # elements of a weight that is computed together with others
STORED = 2  # gradients of up to this many times the elements of their operands are stored, not computed twice
CHUNK_ELEMENTS = 2**24  # of products or gradients held at a time: 64 MiB in float32


class PerExampleGrad(ABC):
    """Gradients of n examples with respect to one weight of a given shape."""

    n: int
    shape: torch.Size

    def squares(self) -> Tensor:
        """||g_i||^2, (n,)."""
        step = max(1, CHUNK_ELEMENTS // self.shape.numel())
        return torch.cat([row_squares(self.dense(slice(k, k + step))) for k in range(0, self.n, step)])

    def stored(self) -> "PerExampleGrad":
        """Where norms and a weighted sum then take less time, the gradients multiplied out; else itself."""
        return self

    def materialize(self) -> None:
        """Takes what it needs of the graph, before that is freed."""

    @abstractmethod
    def dense(self, examples: slice) -> Tensor:
        """The gradients of these examples, (m, *shape)."""

    @abstractmethod
    def weighted(self, weights: Tensor) -> Tensor:
        """sum_i weights_i g_i, of the weight's shape; weights (n,)."""

    @classmethod
    def joined(cls, uses: Sequence["PerExampleGrad"]) -> "PerExampleGrad | None":
        """One gradient for the sum over several uses of the weight, or None where the form does not allow it."""
        return None


@cache
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers, copied to a device once: a copy from the host waits for all that the device has to do.

    They are kept for good: a CUDA graph that was captured reads them where they are.
    """
    return torch.tensor(numbers, device=device)


def merge(uses: Sequence[PerExampleGrad]) -> PerExampleGrad:
    """The gradients of a weight that is used several times: sums over the uses, cross terms included."""
    if len(uses) == 1:
        return uses[0]
    kind = type(uses[0])
    one = kind.joined(uses) if all(type(use) is kind for use in uses) else None
    return one if one is not None else SumGrad(uses)


class SumGrad(PerExampleGrad):
    """Uses of different forms."""

    def __init__(self, uses: Sequence[PerExampleGrad]):
        self.n, self.shape, self.uses = uses[0].n, uses[0].shape, uses

    def dense(self, examples: slice) -> Tensor:
        return torch.stack([use.dense(examples) for use in self.uses]).sum(0)

    def weighted(self, weights: Tensor) -> Tensor:
        return torch.stack([use.weighted(weights) for use in self.uses]).sum(0)


class DenseGrad(PerExampleGrad):
    """values: (n, *shape). known_squares: their squared norms (n,), or None."""

    def __init__(self, values: Tensor, shape: torch.Size | None = None, known_squares: Tensor | None = None):
        self.n, self.shape = len(values), torch.Size(values.shape[1:] if shape is None else shape)
        self.values, self.known_squares = values.reshape(self.n, *self.shape), known_squares

    def squares(self) -> Tensor:
        return row_squares(self.values) if self.known_squares is None else self.known_squares

    def dense(self, examples: slice) -> Tensor:
        return self.values[examples]

    def weighted(self, weights: Tensor) -> Tensor:
        return (weights.to(self.values) @ self.values.reshape(self.n, -1)).view(self.shape)

    @classmethod
    def joined(cls, uses: Sequence["DenseGrad"]) -> "DenseGrad":
        return cls(torch.stack([use.values for use in uses]).sum(0))


class StackedGrads:
    """Gradients of many small weights (biases, norm layers): one product for all of them where each would take one."""

    def __init__(self, gradients: dict[int, DenseGrad]):
        self.gradients = gradients
        self._values = torch.cat([g.values.reshape(g.n, -1) for g in gradients.values()], 1)  # (n, P)
        self._lengths = [g.shape.numel() for g in gradients.values()]

    @staticmethod
    def takes(gradient: PerExampleGrad) -> TypeGuard[DenseGrad]:
        if not isinstance(gradient, DenseGrad):
            return False
        small = gradient.shape.numel() <= SMALL.get(gradient.values.device.type, 0)
        return small and gradient.known_squares is None

    def squares(self) -> Tensor:
        """(weights, n) float64."""
        squares = self._values.double().square_()
        lengths = on_device(tuple(self._lengths) * len(squares), squares.device)
        sums = torch.segment_reduce(
            squares.view(-1), "sum", lengths=lengths, unsafe=True
        )  # else the host reads lengths
        return sums.view(len(squares), -1).T

    def weighted(self, weights: Tensor) -> dict[int, Tensor]:
        """sum_i weights_i g_i by number of the weight."""
        parts = (weights.to(self._values) @ self._values).split(self._lengths)
        return {k: part.view(g.shape) for (k, g), part in zip(self.gradients.items(), parts, strict=True)}


class OuterProductGrad(PerExampleGrad):
    """sum_t a_t^T g_t for a (n, B, T, I) and g (n, B, T, O); B I O numbers in the shape of the weight."""

    def __init__(self, a: Tensor, g: Tensor, shape: torch.Size):
        self.n, self.shape, self.a, self.g = len(a), shape, a, g

    def stored(self) -> PerExampleGrad:
        t = self.a.shape[2]
        few = self.n * self.shape.numel() <= STORED * (self.a.numel() + self.g.numel())
        return DenseGrad(self.dense(slice(None))) if t > 1 and few else self

    def squares(self) -> Tensor:
        n, b, t, i = self.a.shape
        o = self.g.shape[3]
        if t == 1:
            return (row_squares(self.a.flatten(0, 1)) * row_squares(self.g.flatten(0, 1))).view(n, b).sum(1)
        if t * (i + o) >= i * o:  # T T (I + O) products for the Gram form, T I O for the gradient itself
            return super().squares()
        step = max(1, CHUNK_ELEMENTS // (b * t * t))
        parts = []
        for a, g in zip(self.a.split(step), self.g.split(step), strict=True):
            parts.append(torch.linalg.vecdot((a @ a.mT).flatten(1), (g @ g.mT).flatten(1)))
        return torch.cat(parts)

    def dense(self, examples: slice) -> Tensor:
        return (self.a[examples].mT @ self.g[examples]).reshape(-1, *self.shape)

    def weighted(self, weights: Tensor) -> Tensor:
        a, g, w = self.a, self.g, weights.to(self.a).view(-1, 1, 1, 1)
        a, g = (a * w, g) if a.numel() < g.numel() else (a, g * w)
        a, g = (t.transpose(0, 1).flatten(1, 2) for t in (a, g))  # (B, n T, ...)
        return (a.mT @ g).reshape(self.shape)

    def input_shape(self) -> tuple[int, int]:
        """Groups of inputs, and inputs of one."""
        return 1, self.a.shape[3]

    def features(self, basis: Tensor) -> Tensor:
        """a Q, (n, 1, T, rank), for a basis Q (1, I, rank)."""
        return self.a @ basis

    def input_products(self, y: Tensor) -> Tensor:
        """The sum over all positions of a^T y, (1, I, rank), for y (n, 1, T, rank)."""
        return torch.einsum("nbti,nbtr->bir", self.a, y)

    def along_features(self, y: Tensor) -> Tensor:
        """The gradients times Q, (n, O, rank), for the input times Q (n, G, T, rank)."""
        return (self.outputs(self.g) @ y).flatten(1, 2)

    @staticmethod
    def along(values: Tensor, basis: Tensor) -> Tensor:
        """Given gradients (m, *shape) times Q, (m, O, rank)."""
        _, inputs, _ = basis.shape
        return values.to(basis).reshape(len(values), inputs, -1).mT @ basis[0]

    def outputs(self, t: Tensor) -> Tensor:
        """(m, 1, T, O), or (m, T, O) -> (m, 1, O, T)."""
        return (t if t.dim() == 4 else t[:, None]).mT

    @classmethod
    def joined(cls, uses: Sequence["OuterProductGrad"]) -> "OuterProductGrad":
        return cls(torch.cat([use.a for use in uses], 2), torch.cat([use.g for use in uses], 2), uses[0].shape)


class EmbeddingGrad(PerExampleGrad):
    """RowLayout of a table (V, D): row index_t gets g_t, for index (n, T) and g (n, T, D)."""

    def __init__(self, index: Tensor, g: Tensor, shape: torch.Size):
        self.n, self.shape, self.index, self.g = len(index), shape, index, g

    def squares(self) -> Tensor:
        t = self.index.shape[1]
        step = max(1, CHUNK_ELEMENTS // (t * t))
        parts = []
        for index, g in zip(self.index.split(step), self.g.split(step), strict=True):
            same = index[:, :, None] == index[:, None, :]
            parts.append(torch.where(same, g @ g.mT, 0).sum((1, 2)))
        return torch.cat(parts)

    def dense(self, examples: slice) -> Tensor:
        index, g = self.index[examples], self.g[examples]
        index = index + self.shape[0] * torch.arange(len(index), device=index.device)[:, None]
        rows = g.new_zeros(len(g) * self.shape[0], self.shape[1])
        return rows.index_add_(0, index.flatten(), g.flatten(0, 1)).view(-1, *self.shape)

    def weighted(self, weights: Tensor) -> Tensor:
        g = self.g * weights.to(self.g).view(-1, 1, 1)
        return self.g.new_zeros(self.shape).index_add_(0, self.index.flatten(), g.flatten(0, 1))

    @classmethod
    def joined(cls, uses: Sequence["EmbeddingGrad"]) -> "EmbeddingGrad":
        return cls(torch.cat([use.index for use in uses], 1), torch.cat([use.g for use in uses], 1), uses[0].shape)


def row_squares(t: Tensor) -> Tensor:
    """(n, ...) -> squared norms (n,)."""
    rows = t.reshape(len(t), -1)
    return torch.linalg.vecdot(rows, rows)
