"""Layout rules of operations that move elements by the contents of an index.

An index along other axes than the examples' needs no look at its contents. Along the examples' axis the contents
decide: they are read, and the proof holds for these contents alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pyengm.pergrad.layout import Layout, Shape, UnprovenError, along_axis, carry, collect, examples_axis, locate, place
from pyengm.pergrad.rules.registry import Layouts, NodeView, axis_of, layout_rule, single


@layout_rule("Gather", "dim")
@single
def gather(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, _ = locate(layout, source)
    if axis == axis_of(node.fields["dim"], len(target)):
        raise UnprovenError("an index along the examples")
    if axis >= len(target):
        return collect(layout)
    return place(layout, source, target, axis, np.arange(source[axis]))  # axes may be shorter, from index 0 on


@layout_rule("IndexAdd IndexCopy IndexFill IndexFillBackward1 Scatter ScatterAdd ScatterBackward1 ScatterReduce", "dim")
def scatter(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source = layouts[0], node.outputs[0]
    found: Layouts = [None if node.inputs[0] is None else layout]
    for to in node.inputs[1:]:
        if to is None or layout.is_constant:
            found.append(None if to is None else layout)
            continue
        axis, owners = examples_axis(layout, source)
        if axis == axis_of(node.fields["dim"], len(source)):
            raise UnprovenError("an index along the examples")
        found.append(along_axis(owners[: to[axis]], to, axis) if len(to) == len(source) else collect(layout))
    return found


def _index_axes(indices: Sequence[Tensor | None], axes: int) -> tuple[dict[int, int], range]:
    """How x[indices] moves axes: from the result to those of x without an index, and which axes the indices make."""
    used = [axis for axis, index in enumerate(indices) if index is not None]
    width = len(np.broadcast_shapes(*(tuple(index.shape) for index in indices if index is not None)))
    adjacent = used == list(range(used[0], used[-1] + 1))
    start, free = used[0] if adjacent else 0, [axis for axis in range(axes) if axis not in used]
    order = [*free[:start], *[None] * width, *free[start:]] if adjacent else [*[None] * width, *free]
    return {a: b for a, b in enumerate(order) if b is not None}, range(start, start + width)


@layout_rule("Index UnsafeIndex", "indices")
@single
def index(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    return _indexed(node, "indices", node.fields["indices"], layout, source, target)


@layout_rule("IndexSelect", "dim index")
@single
def index_select(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    axis = axis_of(node.fields["dim"], len(target))
    return _indexed(node, "index", (*[None] * axis, node.fields["index"]), layout, source, target)


def _indexed(
    node: NodeView, field: str, indices: Sequence[Tensor | None], layout: Layout, source: Shape, target: Shape
) -> Layout:
    if layout.is_constant:
        return layout
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        raise UnprovenError("a mask as an index")
    axes, made = _index_axes(indices, len(target))
    axis, owners = examples_axis(layout, source)
    if axis in axes:
        return carry(layout, source, target, axes)
    shape = np.broadcast_shapes(*(tuple(index.shape) for index in indices if index is not None))
    view = [-1 if k == axis - made.start else 1 for k in range(len(shape))]
    wanted = np.broadcast_to(owners.reshape(view), shape)
    for along, values in enumerate(indices):  # the examples lie along an axis whose indices tell their owners apart
        if values is None or target[along] < 2:
            continue
        read = node.contents(field, along if field == "indices" else None)
        positions = np.broadcast_to(read.cpu().numpy() % target[along], shape)
        found = np.full(target[along], -1)
        found[positions.ravel()] = wanted.ravel()
        if (found[positions] == wanted).all():
            return along_axis(found, target, along)
    return collect(layout)


@layout_rule("IndexPut IndexPutImpl UnsafeIndexPut", "indices")
def index_put(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source = layouts[0], node.outputs[0]
    first, values = node.inputs[:2]
    if values is None or layout.is_constant:
        return [None if to is None else layout for to in node.inputs]
    axes, made = _index_axes(node.fields["indices"], len(source))
    axis, _ = locate(layout, source)
    results = {b: a for a, b in axes.items()}
    if axis not in results:
        raise UnprovenError("an index along the examples")
    whole = len(axes) + len(made)  # axes of source[indices], with which the values align at the right
    to = results[axis] + len(values) - whole
    found = collect(layout) if to < 0 else carry(layout, source, values, {axis: to})
    return [None if first is None else layout, found]
