"""Per-example squared norms of parameter gradients, one rule per node type of the autograd graph.

A rule takes the node, the slots that hold parameters, the gradient g of the node's output and the layout of its
rows, and returns (n,) in float32 or better. The `_saved_*` names belong to torch; this file is the only one that
reads them. Shapes: n examples, T positions of an example, I inputs, O outputs, C channels.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.pergrad.graph import Consumer, Node, UnservedError

CHUNK_ELEMENTS = 2**24  # of unfolded pictures or products held at a time: 64 MiB in float32


@dataclass(frozen=True)
class Rows:
    """How n * T rows belong to n examples: T consecutive rows each, or one row each, T times over."""

    n: int
    batch_first: bool

    def split(self, t: Tensor) -> Tensor:
        """(n * T, d) -> (n, T, d)."""
        if self.batch_first:
            return t.view(self.n, -1, t.shape[-1])
        return t.view(-1, self.n, t.shape[-1]).transpose(0, 1)


def squares(consumer: Consumer, g: Tensor, rows: Rows) -> Tensor:
    """Squared norms (n,) of the gradients of a consumer's parameters. Raises UnservedError where no rule serves."""
    rule, _ = RULES[consumer.name]
    return rule(consumer.node, consumer.slots, _wide(g), rows)


def check_served(consumers: Iterable[Consumer]) -> None:
    """Raises UnservedError for a consumer that has no rule, without a backward pass."""
    for consumer in consumers:
        if not set(consumer.slots) <= set(RULES.get(consumer.name, (None, ()))[1]):
            raise UnservedError(f"{consumer.name} with parameters in slots {sorted(consumer.slots)} has no rule")
        if consumer.name == "NativeBatchNormBackward0" and consumer.node._saved_training:
            raise UnservedError("batch norm in training mode couples the examples")


def as_rows(node: Node, g: Tensor) -> Tensor:
    """g as a matrix whose rows each belong to one example."""
    if node.name() == "NativeLayerNormBackward0":
        return g.reshape(-1, _numel(node._saved_normalized_shape))
    return g.flatten(1)


def linear(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """addmm(bias, a, W^T): the gradient of W is sum_t g_t a_t^T, that of the bias sum_t g_t."""
    if node._saved_alpha != 1 or node._saved_beta != 1 or 1 in slots:
        raise UnservedError("addmm with factors, or with a parameter as its first matrix, has no rule")
    g = rows.split(g)
    total = g.new_zeros(rows.n)
    if 0 in slots:
        total += g.sum(1).square().sum(1)
    if 2 in slots:
        total += _outer_squares(rows.split(_wide(node._saved_mat1)), g)
    return total


def matmul(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """mm(a, W^T), a linear layer without bias."""
    return _outer_squares(rows.split(_wide(node._saved_self)), rows.split(g))


def convolution(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """Convolutions of 1, 2 and 3 dimensions, transposed ones too, with any stride, padding, dilation and groups."""
    _one_row_each(node, g, rows)
    total = g.new_zeros(rows.n)
    if 2 in slots:
        total += g.flatten(2).sum(2).square().sum(1)
    if 1 in slots:
        x, weight = _wide(node._saved_input), _wide(node._saved_weight)
        flat = weight.dim() <= 4 and not node._saved_transposed  # what unfold takes
        positions, inputs, outputs = _numel(g.shape[2:]), _numel(weight.shape[1:]), len(weight) // node._saved_groups
        if flat and (x.is_cuda or _gram_is_cheaper(positions, inputs, outputs)):
            total += _unfolded_squares(node, x, weight, g)
        else:
            total += _weight_gradient_squares(node, x, weight, g)
    return total


def _weight_gradient_squares(node: Node, x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """The weight gradient itself, example by example: torch's kernel knows every geometry, and none is stored."""
    geometry = (node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed)
    geometry += (node._saved_output_padding, node._saved_groups, (False, True, False))
    parts = []
    for x_i, g_i in zip(x.split(1), g.split(1), strict=True):
        gradient = torch.ops.aten.convolution_backward(g_i, x_i, weight, None, *geometry)[1].flatten()
        parts.append(gradient @ gradient)
    return torch.stack(parts)


def _unfolded_squares(node: Node, x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """As matrix products over unfolded pictures, for Conv1d and Conv2d."""
    ones = [1] * (4 - weight.dim())  # a Conv1d is a Conv2d of height one
    geometry = {
        name: (*fill, *getattr(node, f"_saved_{name}"))
        for name, fill in (("dilation", ones), ("padding", [0] * len(ones)), ("stride", ones))
    }
    kernel, groups = (*ones, *weight.shape[2:]), node._saved_groups
    x = x.reshape(*x.shape[:2], *ones, *x.shape[2:])
    step = max(1, CHUNK_ELEMENTS // (_numel(kernel) * x.shape[1] * _numel(g.shape[2:])))
    parts = []
    for x_k, g_k in zip(x.split(step), g.split(step), strict=True):
        patches = F.unfold(x_k, kernel, **geometry)  # (m, C k^2, T)
        a = patches.unflatten(1, (groups, -1)).flatten(0, 1).transpose(1, 2)  # (m groups, T, I)
        b = g_k.flatten(2).unflatten(1, (groups, -1)).flatten(0, 1).transpose(1, 2)  # (m groups, T, O)
        parts.append(_outer_squares(a, b).view(-1, groups).sum(1))
    return torch.cat(parts)


def group_norm(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """y = xhat * gamma + beta: the gradients are sum_t g xhat and sum_t g per channel."""
    _one_row_each(node, g, rows)
    x = _wide(node._saved_input).reshape(node._saved_N, node._saved_group, -1)
    mean, rstd = (t.view(node._saved_N, node._saved_group, 1) for t in (node._saved_result1, node._saved_result2))
    xhat = ((x - mean) * rstd).view(node._saved_N, node._saved_C, -1)
    return _affine_squares(slots, g.flatten(2), xhat)


def batch_norm(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """Batch norm in eval mode."""
    _one_row_each(node, g, rows)
    shape = (1, -1, *[1] * (g.dim() - 2))
    mean, variance = (_wide(t).view(shape) for t in (node._saved_running_mean, node._saved_running_var))
    xhat = (_wide(node._saved_input) - mean) * torch.rsqrt(variance + node._saved_eps)
    return _affine_squares(slots, g.reshape(*g.shape[:2], -1), xhat.reshape(*g.shape[:2], -1))


def layer_norm(node: Node, slots: Collection[int], g: Tensor, rows: Rows) -> Tensor:
    """Layer norm over the last axes; its rows are all the positions of all examples."""
    d = _numel(node._saved_normalized_shape)
    x = _wide(node._saved_input).reshape(-1, d)
    xhat = (x - node._saved_result1.reshape(-1, 1)) * node._saved_result2.reshape(-1, 1)
    g, xhat = (rows.split(t).transpose(1, 2) for t in (g.reshape(-1, d), xhat))  # (n, d, T)
    return _affine_squares(slots, g, xhat)


# node name -> the rule and the slots that it serves
RULES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "AddmmBackward0": (linear, (0, 2)),
    "ConvolutionBackward0": (convolution, (1, 2)),
    "MmBackward0": (matmul, (1,)),
    "NativeBatchNormBackward0": (batch_norm, (1, 2)),
    "NativeGroupNormBackward0": (group_norm, (1, 2)),
    "NativeLayerNormBackward0": (layer_norm, (1, 2)),
}


def _outer_squares(a: Tensor, g: Tensor) -> Tensor:
    """||sum_t g_t a_t^T||^2 per example, for a (n, T, I) and g (n, T, O), by the cheaper of two exact forms."""
    n, t, i = a.shape
    o = g.shape[2]
    if t == 1:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))
    gram = _gram_is_cheaper(t, i, o)
    step = max(1, CHUNK_ELEMENTS // (t * t if gram else i * o))
    parts = []
    for k in range(0, n, step):
        a_k, g_k = a[k : k + step], g[k : k + step]
        if gram:
            parts.append((a_k @ a_k.mT).mul_(g_k @ g_k.mT).sum((1, 2)))
        else:
            parts.append((g_k.mT @ a_k).square_().sum((1, 2)))
    return torch.cat(parts)


def _gram_is_cheaper(t: int, i: int, o: int) -> bool:
    """sum_ts <a_t, a_s> <g_t, g_s> takes T T (I + O) products, the gradient itself T I O."""
    return t * (i + o) < i * o


def _affine_squares(slots: Collection[int], g: Tensor, xhat: Tensor) -> Tensor:
    """g, xhat: (n, C, T). Slot 1 is the weight, slot 2 the bias."""
    total = g.new_zeros(g.shape[0])
    if 1 in slots:
        total += (g * xhat).sum(2).square().sum(1)
    if 2 in slots:
        total += g.sum(2).square().sum(1)
    return total


def _one_row_each(node: Node, g: Tensor, rows: Rows) -> None:
    if len(g) != rows.n:
        raise UnservedError(f"{node.name()} has {len(g)} pictures for {rows.n} examples")


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _numel(shape) -> int:
    return int(torch.Size(shape).numel())
