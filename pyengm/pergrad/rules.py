"""How the nodes of the autograd graph use weights: one rule per node type.

A rule takes a node, the slots that hold weights with the weights' shapes, the gradient g of the node's output and the
layout of its rows, and gives the per-example gradient of each weight. The fields of torch's nodes that rules read are
listed in `SAVED`. Shapes: n examples, R rows, T rows of an example, I inputs, O outputs, C channels, D features.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.ops import row_sums
from pyengm.pergrad.conv import Conv, Geometry
from pyengm.pergrad.gradients import Dense, Gradient, Lookup, Outer
from pyengm.pergrad.graph import Node
from pyengm.pergrad.rows import Rows

Slots = Mapping[int, torch.Size]  # input slot -> shape of the weight in it


@dataclass(frozen=True)
class Rule:
    """slots: those that it serves. rows(node, slots, g): g with the rows that belong to examples as its first axis.

    narrow: whether gradients takes g in 16 bits as it is; others get it in float32.
    """

    slots: tuple[int, ...]
    gradients: Callable[[Node, Slots, Tensor, Rows], dict[int, Gradient]]
    rows: Callable[[Node, Slots, Tensor], Tensor] = lambda node, slots, g: g
    narrow: bool = False


def linear(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """beta bias + alpha a W with a (R, I), W (I, O)."""
    found: dict[int, Gradient] = {}
    alpha, beta = saved(node, "alpha"), saved(node, "beta")
    g = rows.split(g)
    if 0 in slots:
        if slots[0].numel() != g.shape[2]:
            raise UnsupportedOperationError(f"addmm with a bias of shape {tuple(slots[0])} has no rule")
        found[0] = Dense(g.sum(1) * beta, slots[0])
    if 2 in slots:
        a = rows.split(wide(saved(node, "mat1")))
        found[2] = Outer(a[:, None] if alpha == 1 else a[:, None] * alpha, g[:, None], slots[2])
    return found


def matmul(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a W with a (R, I), W (I, O); or W b with W (O, I), b (I, R)."""
    if 1 in slots:
        a = rows.split(wide(saved(node, "self")))
        return {1: Outer(a[:, None], rows.split(g)[:, None], slots[1])}
    b = rows.split(wide(saved(node, "mat2")).mT)
    return {0: Outer(rows.split(g.mT)[:, None], b[:, None], slots[0])}


def matvec(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a w with a (R, I), w (I,)."""
    a = rows.split(wide(saved(node, "self")))
    return {1: Outer(a[:, None], rows.split(g)[:, None, :, None], slots[1])}


def batched_matmul(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """B products at once, a W with a (B, R, I), W (B, I, O); or W b with W (B, O, I), b (B, I, R)."""

    def split(t: Tensor) -> Tensor:  # (B, R, D) -> (n, B, T, D)
        return rows.split(t.transpose(0, 1)).transpose(1, 2)

    if 1 in slots:
        return {1: Outer(split(wide(saved(node, "self"))), split(g), slots[1])}
    return {0: Outer(split(g.mT), split(wide(saved(node, "mat2")).mT), slots[0])}


def convolution(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """Convolutions of 1, 2 and 3 dimensions, transposed ones too, with any stride, padding, dilation and groups."""
    found: dict[int, Gradient] = {}
    if 2 in slots:
        found[2] = Dense(rows.split(wide(g).flatten(2).sum(2)).sum(1), slots[2])
    if 1 in slots:
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        geometry = Geometry(*(saved(node, name) for name in names))
        found[1] = Conv(rows.split(saved(node, "input")), rows.split(g), saved(node, "weight"), geometry)
    return found


def group_norm(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """y = xhat gamma + beta: the gradients are sum_t g xhat and sum_t g per channel."""
    n, groups = saved(node, "N"), saved(node, "group")
    mean, rstd = (wide(saved(node, name)).view(n, groups, 1) for name in ("result1", "result2"))
    total, dot = channel_sums(g, wide(saved(node, "input")))
    dot = ((dot.view(n, groups, -1) - total.view(n, groups, -1) * mean) * rstd).view(n, -1)
    return _affine(slots, dot, total, rows)


def batch_norm(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """Batch norm of given or of the batch's statistics, these held constant; cuDNN's and MIOpen's only train."""
    if getattr(node, "_saved_training", True):
        mean, rstd = wide(saved(node, "result1")), wide(saved(node, "result2"))
    else:
        mean, rstd = wide(saved(node, "running_mean")), wide(saved(node, "running_var"))
        rstd = torch.rsqrt(rstd + saved(node, "eps"))
    total, dot = channel_sums(g, wide(saved(node, "input")))
    return _affine(slots, (dot - total * mean) * rstd, total, rows)


def layer_norm(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """Layer norm over the last axes; its rows are all the positions of all examples."""
    shape = torch.Size(saved(node, "normalized_shape"))
    g, x = (t.reshape(-1, shape.numel()) for t in (g, wide(saved(node, "input"))))
    mean, rstd = (wide(saved(node, name)).reshape(-1, 1) for name in ("result1", "result2"))
    found: dict[int, Gradient] = {}
    if 1 in slots:
        found[1] = Dense(rows.split((x - mean).mul_(rstd).mul_(g)).sum(1), slots[1])
    if 2 in slots:
        found[2] = Dense(rows.split(g).sum(1), slots[2])
    return found


def fused_rms_norm(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """RMS norm where torch runs it as one kernel; elsewhere it is a product like any other."""
    d = torch.Size(saved(node, "normalized_shape")).numel()
    g, x = (t.reshape(-1, d) for t in (g, wide(saved(node, "input"))))
    xhat = x * wide(saved(node, "result1")).reshape(-1, 1)
    return {1: Dense(rows.split(g * xhat).sum(1), slots[1])}


def prelu(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """x where x > 0, else weight x: the gradient of the weight is g x where x < 0."""
    x = wide(saved(node, "self"))
    return {1: _reduced(g * x.clamp(max=0), slots[1], rows)}


def embedding(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """Rows of a table, looked up by number."""
    if saved(node, "scale_grad_by_freq"):
        raise UnsupportedOperationError("scale_grad_by_freq mixes examples")
    g = g.reshape(-1, g.shape[-1])
    index = saved(node, "indices").reshape(-1)
    g = torch.where((index == saved(node, "padding_idx"))[:, None], 0, g)
    return {0: Lookup(rows.split(index), rows.split(g), slots[0])}


def add(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a + alpha b, a weight broadcast over the examples."""
    alpha = saved(node, "alpha")
    return {k: _reduced(g * alpha if k == 1 and alpha != 1 else g, shape, rows) for k, shape in slots.items()}


def subtract(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a - alpha b, a weight broadcast over the examples."""
    alpha = saved(node, "alpha")
    return {k: _reduced(g * -alpha if k == 1 else g, shape, rows) for k, shape in slots.items()}


def multiply(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a * b, a weight broadcast over the examples."""
    return {k: _reduced(g * wide(saved(node, ("other", "self")[k])), shape, rows) for k, shape in slots.items()}


def divide(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """a / b, a weight broadcast over the examples."""
    b = wide(saved(node, "other"))
    return {
        k: _reduced(g / b if k == 0 else -g * wide(saved(node, "self")) / b.square(), shape, rows)
        for k, shape in slots.items()
    }


class Called(Gradient):
    """Gradients that a node's own backward function gives, called once for every example; g (R, *)."""

    def __init__(self, node: Node, slot: int, shape: torch.Size, g: Tensor, rows: Rows):
        self.n, self.shape, self.node, self.slot = rows.n, shape, node, slot
        self.g, self.form = _first_axis(node, {}, g), g.shape
        self.owner = rows.owners(len(self.g)).to(g.device)
        self.kept: Dense | None = None

    def squares(self, keep: bool = False) -> Tensor:
        if not keep:
            return super().squares()
        self.settle()
        assert self.kept is not None
        return self.kept.squares()

    def settle(self) -> None:
        self.kept = Dense(self.dense(slice(None)))

    def dense(self, examples: slice) -> Tensor:
        if self.kept is not None:
            return self.kept.dense(examples)
        return torch.stack([self._call(self.owner == i) for i in range(self.n)[examples]])

    def weighted(self, weights: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept.weighted(weights)
        return self._call(weights.to(self.g)[self.owner])

    def _call(self, factors: Tensor) -> Tensor:
        """A backward function is linear in the output gradient."""
        g = (self.g * factors.view(-1, *[1] * (self.g.dim() - 1))).reshape(self.form)
        others = [None] * (len(self.node._input_metadata) - 1)
        gradients = self.node(g, *others)
        gradient = gradients[self.slot] if isinstance(gradients, tuple) else gradients
        return wide(gradient).sum_to_size(self.shape)  # autograd does that between nodes


def call(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """Any node of torch's own whose output has the examples in its first axis."""
    return {slot: Called(node, slot, shape, g, rows) for slot, shape in slots.items()}


def expand(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """A weight broadcast over the examples: class tokens, weights of batched products."""
    return {0: _reduced(g, slots[0], rows)}


def repeat(node: Node, slots: Slots, g: Tensor, rows: Rows) -> dict[int, Gradient]:
    """A weight copied for every example."""
    return {0: Dense(rows.split(_repeats(node, slots, g)).sum(1), slots[0])}


def _broadcast_axes(of: torch.Size, weight: torch.Size) -> tuple[list[int], list[int]]:
    """The axes of a result along which a weight is broadcast, and the others."""
    padded = (1,) * (len(of) - len(weight)) + tuple(weight)
    over = [axis for axis, size in enumerate(of) if padded[axis] != size]
    return over, [axis for axis in range(len(of)) if axis not in over]


def _broadcast_rows(node: Node, slots: Slots, g: Tensor) -> Tensor:
    """(R, D): rows over the axes along which the weight is broadcast."""
    _one_operand(slots)
    (shape,) = slots.values()
    over, kept = _broadcast_axes(g.shape, shape)
    rows = torch.Size(g.shape[axis] for axis in over).numel()
    return g.permute(*over, *kept).reshape(rows, -1)


def _reduced(g: Tensor, shape: torch.Size, rows: Rows) -> Dense:
    return Dense(rows.split(_broadcast_rows(None, {0: shape}, g)).sum(1), shape)


def _one_operand(slots: Slots) -> None:
    if len(slots) > 1:
        raise UnsupportedOperationError("it mixes examples: both of its operands are sums over them")


def _first_axis(node: Node, slots: Slots, g: Tensor) -> Tensor:
    return g if g.dim() else g[None]


def _repeats(node: Node, slots: Slots, g: Tensor) -> Tensor:
    """(R, *weight): every copy is a row."""
    repeats = saved(node, "repeats")
    sizes = (1,) * (len(repeats) - len(slots[0])) + tuple(slots[0])
    g = g.reshape([size for pair in zip(repeats, sizes, strict=True) for size in pair])
    copies = torch.Size(repeats).numel()
    return g.permute(*range(0, g.dim(), 2), *range(1, g.dim(), 2)).reshape(copies, *slots[0])


def _layer_norm_rows(node: Node, slots: Slots, g: Tensor) -> Tensor:
    return g.reshape(-1, torch.Size(saved(node, "normalized_shape")).numel())


def _matmul_rows(node: Node, slots: Slots, g: Tensor) -> Tensor:
    _one_operand(slots)
    return g if 1 in slots else g.mT


def _batched_matmul_rows(node: Node, slots: Slots, g: Tensor) -> Tensor:
    _one_operand(slots)
    return (g if 1 in slots else g.mT).transpose(0, 1)


RULES: dict[str, Rule] = {
    "AddBackward0": Rule((0, 1), add, _broadcast_rows),
    "AddmmBackward0": Rule((0, 2), linear),
    "BmmBackward0": Rule((0, 1), batched_matmul, _batched_matmul_rows),
    "ConvolutionBackward0": Rule((1, 2), convolution, narrow=True),
    "CudnnBatchNormBackward0": Rule((1, 2), batch_norm),
    "DivBackward0": Rule((0, 1), divide, _broadcast_rows),
    "EmbeddingBackward0": Rule((0,), embedding, lambda node, slots, g: g.reshape(-1, g.shape[-1])),
    "ExpandBackward0": Rule((0,), expand, _broadcast_rows),
    "FusedRmsNormBackward0": Rule((1,), fused_rms_norm, _layer_norm_rows),
    "MiopenBatchNormBackward0": Rule((1, 2), batch_norm),
    "MmBackward0": Rule((0, 1), matmul, _matmul_rows),
    "MulBackward0": Rule((0, 1), multiply, _broadcast_rows),
    "MvBackward0": Rule((1,), matvec),
    "NativeBatchNormBackward0": Rule((1, 2), batch_norm),
    "NativeGroupNormBackward0": Rule((1, 2), group_norm),
    "NativeLayerNormBackward0": Rule((1, 2), layer_norm, _layer_norm_rows),
    "PreluKernelBackward0": Rule((1,), prelu, _broadcast_rows),
    "RepeatBackward0": Rule((0,), repeat, _repeats),
    "SubBackward0": Rule((0, 1), subtract, _broadcast_rows),
}

ANY = Rule((), call, _first_axis)


def called(node: Node) -> bool:
    """Whether the node's own backward function serves its weights."""
    return node.name() not in RULES


def rule_of(node: Node, slots: Iterable[int]) -> Rule | None:
    """The rule for weights in these slots of a node, or None where even its own backward function cannot be called."""
    rule = RULES.get(node.name())
    if rule is not None and set(slots) <= set(rule.slots):
        return rule
    return ANY if rule is None and callable(node) else None


# The fields of torch's nodes that are read: node name -> names without `_saved_`. The names belong to torch.
SAVED: dict[str, tuple[str, ...]] = {
    "AddBackward0": ("alpha",),
    "AddmmBackward0": ("alpha", "beta", "mat1"),
    "BmmBackward0": ("mat2", "self"),
    "ConvolutionBackward0": (
        "input", "weight", "stride", "padding", "dilation", "transposed", "output_padding", "groups"
    ),
    "CudnnBatchNormBackward0": ("input", "result1", "result2", "weight"),
    "DivBackward0": ("other", "self"),
    "EmbeddingBackward0": ("indices", "padding_idx", "scale_grad_by_freq"),
    "FusedRmsNormBackward0": ("input", "normalized_shape", "result1"),
    "MiopenBatchNormBackward0": ("input", "result1", "result2", "weight"),
    "MmBackward0": ("mat2", "self"),
    "MulBackward0": ("other", "self"),
    "MvBackward0": ("self",),
    "NativeBatchNormBackward0": (
        "eps", "input", "result1", "result2", "running_mean", "running_var", "training", "weight"
    ),
    "NativeGroupNormBackward0": ("N", "group", "input", "result1", "result2"),
    "NativeLayerNormBackward0": ("input", "normalized_shape", "result1", "result2"),
    "PreluKernelBackward0": ("self",),
    "RepeatBackward0": ("repeats",),
    "SubBackward0": ("alpha",),
}  # fmt: skip


def saved(node: Node, name: str):
    """A field that a node saved in the forward pass."""
    return getattr(node, f"_saved_{name}")


def channel_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sum_t g and sum_t g x for (N, C, *positions): (N, C) each."""
    n, c = g.shape[:2]
    sums, dots = row_sums(g.reshape(n * c, -1), x.reshape(n * c, -1))
    return sums.view(n, c), dots.view(n, c)


def _affine(slots: Slots, weight: Tensor, bias: Tensor, rows: Rows) -> dict[int, Gradient]:
    """weight, bias: (N, C) sums over the positions of each image."""
    found: dict[int, Gradient] = {}
    if 1 in slots:
        found[1] = Dense(rows.split(weight).sum(1), slots[1])
    if 2 in slots:
        found[2] = Dense(rows.split(bias).sum(1), slots[2])
    return found


def wide(t: Tensor) -> Tensor:
    """Sums and products of 16-bit numbers are taken in float32."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
