"""Gradients of weights that elementwise operations, expand and repeat broadcast over the examples."""

import torch
from torch import Tensor

from pyengm.pergrad.layout import Shape
from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.weights import Node, RowAxes, Slots, saved, to_float32, weight_rule

Found = dict[int, PerExampleGrad]


def _broadcast_axes(shape: Shape, weight: Shape) -> tuple[int, ...]:
    """The axes of a result along which a weight is broadcast."""
    padded = (1,) * (len(shape) - len(weight)) + tuple(weight)
    return tuple(axis for axis, size in enumerate(shape) if padded[axis] != size)


def _broadcast_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    axes = {_broadcast_axes(shape, weight) for weight in slots.values()}
    return (shape, axes.pop()) if len(axes) == 1 else (shape, ())  # two weights of different shapes have no common rows


def _reduced(g: Tensor, shape: torch.Size, rows: RowLayout) -> DenseGrad:
    over = _broadcast_axes(g.shape, shape)
    kept = [axis for axis in range(g.dim()) if axis not in over]
    matrix = g.permute(*over, *kept).reshape(torch.Size(g.shape[axis] for axis in over).numel(), -1)
    return DenseGrad(rows.sums(matrix), shape)


@weight_rule("Add", slots=(0, 1), fields="alpha", rows=_broadcast_rows)
def add(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """a + alpha b."""
    alpha = saved(node, "alpha")
    return {k: _reduced(g * alpha if k == 1 and alpha != 1 else g, shape, rows) for k, shape in slots.items()}


@weight_rule("Sub", slots=(0, 1), fields="alpha", rows=_broadcast_rows)
def subtract(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """a - alpha b."""
    alpha = saved(node, "alpha")
    return {k: _reduced(g * -alpha if k == 1 else g, shape, rows) for k, shape in slots.items()}


@weight_rule("Mul", slots=(0, 1), fields="other self", rows=_broadcast_rows)
def multiply(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """a * b; complex gradients take the conjugate of the other factor."""
    return {
        k: _reduced(g * to_float32(saved(node, ("other", "self")[k])).conj(), shape, rows) for k, shape in slots.items()
    }


@weight_rule("Div", slots=(0, 1), fields="other self", rows=_broadcast_rows)
def divide(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """a / b."""
    b = to_float32(saved(node, "other"))
    return {
        k: _reduced(g / b if k == 0 else -g * to_float32(saved(node, "self")) / b.square(), shape, rows)
        for k, shape in slots.items()
    }


@weight_rule("PreluKernel", slots=(1,), fields="self", rows=_broadcast_rows)
def prelu(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """x where x > 0, else weight x: the gradient of the weight is g x where x < 0."""
    x = to_float32(saved(node, "self"))
    return {1: _reduced(g * x.clamp(max=0), slots[1], rows)}


@weight_rule("Expand", slots=(0,), rows=_broadcast_rows)
def expand(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """Class tokens, and weights of batched products."""
    return {0: _reduced(g, slots[0], rows)}


def _copies(node: Node, weight: Shape) -> tuple[Shape, int]:
    """The shape with every axis of a repeated weight split in (copies, size), and the number of axes."""
    repeats = saved(node, "repeats")
    sizes = (1,) * (len(repeats) - len(weight)) + tuple(weight)
    return tuple(size for pair in zip(repeats, sizes, strict=True) for size in pair), len(repeats)


def _repeat_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    view, axes = _copies(node, slots[0])
    return view, tuple(range(0, 2 * axes, 2))


@weight_rule("Repeat", slots=(0,), fields="repeats", rows=_repeat_rows)
def repeat(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> Found:
    """A weight copied for every example: each copy is a row."""
    view, axes = _copies(node, slots[0])
    g = g.reshape(view).permute(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2))
    return {0: DenseGrad(rows.sums(g.reshape(-1, *slots[0])), slots[0])}
