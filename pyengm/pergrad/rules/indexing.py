"""Layout rules of operations that move elements by the contents of an index or a mask.

An index along other axes than the examples' needs no look at its contents. Along the examples' axis the contents
decide: they are read, and the proof holds for these contents alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from pyengm.pergrad.layout import (
    MAX_PERIOD,
    SHARED,
    Layout,
    Shape,
    UnprovenError,
    along_axis,
    carry,
    collect,
    element_list,
    examples_axis,
    from_owners,
    put,
)
from pyengm.pergrad.rules.registry import Layouts, NodeView, axis_of, layout_rule, single


def _read(node: NodeView, field: str, position: int | None = None) -> np.ndarray:
    return node.contents(field, position).detach().cpu().numpy()


def _only_along(values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The one axis along which an array varies, and the values along it; None where there are several."""
    varying = [axis for axis in range(values.ndim) if (values != values.take([0], axis)).any()]
    if len(varying) > 1:
        return None
    axis = varying[0] if varying else 0
    return axis, values[tuple(slice(None) if a == axis else 0 for a in range(values.ndim))]


@layout_rule("Gather", "dim index")
@single
def gather(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, owners = examples_axis(layout, source)
    if axis >= len(target):
        return collect(layout)
    if axis != axis_of(node.fields["dim"], len(target)):
        return put(layout, source, target, axis, np.arange(source[axis]))  # axes may be shorter, from index 0 on
    index = _read(node, "index")
    along = _only_along(index)
    if along is not None and (along[0] == axis or len(set(along[1].tolist())) == 1):
        return put(
            layout, source, target, axis, index[tuple(slice(None) if a == axis else 0 for a in range(len(source)))]
        )
    return _scattered(index, owners, axis, target)


def _scattered(index: np.ndarray, owners: np.ndarray, axis: int, target: Shape) -> Layout:
    """The layout of a tensor whose element at index[i], along an axis, belongs to the owner of i there."""
    if prod(target) > MAX_PERIOD:
        raise UnprovenError("an index of every element along the examples of a large tensor")
    wanted = np.broadcast_to(owners.reshape([-1 if a == axis else 1 for a in range(index.ndim)]), index.shape)
    at = [
        np.arange(size).reshape([-1 if a == k else 1 for a in range(index.ndim)]) for k, size in enumerate(index.shape)
    ]
    at[axis] = index
    found = np.full(target, -1)
    np.maximum.at(found, tuple(at), wanted)
    return from_owners(found.ravel()) if (found[tuple(at)] == wanted)[wanted >= 0].all() else SHARED


@layout_rule("IndexAdd IndexCopy IndexFill IndexFillBackward1", "dim index")
def index_along(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A tensor, with rows of another one added to or put in place of its own."""
    layout, source = layouts[0], node.outputs[0]
    found: Layouts = [None if node.inputs[0] is None else layout]
    for to in node.inputs[1:]:
        if to is None or layout.is_constant:
            found.append(None if to is None else layout)
            continue
        axis, owners = examples_axis(layout, source)
        if axis == axis_of(node.fields["dim"], len(source)):
            owners = owners[_read(node, "index").reshape(-1)]
        whole = len(to) == len(source) and to[axis] == len(owners)
        found.append(along_axis(owners, to, axis) if whole else collect(from_owners(owners)))
    return found


@layout_rule("Scatter ScatterAdd ScatterBackward1 ScatterReduce", "dim index")
def scatter(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A tensor, with elements of another one put at indices along one axis."""
    layout, source = layouts[0], node.outputs[0]
    found: Layouts = [None if node.inputs[0] is None else layout]
    for to in node.inputs[1:]:
        if to is None or layout.is_constant:
            found.append(None if to is None else layout)
            continue
        axis, owners = examples_axis(layout, source)
        if len(to) != len(source):
            found.append(collect(layout))
        elif axis == axis_of(node.fields["dim"], len(source)):
            found.append(_gathered(owners[_read(node, "index")], to))
        else:
            found.append(along_axis(owners[: to[axis]], to, axis))
    return found


def _gathered(owners: np.ndarray, target: Shape) -> Layout:
    """The layout of a tensor whose elements have these owners."""
    along = _only_along(owners)
    if owners.shape != target:
        raise UnprovenError("fewer indices than elements")
    return from_owners(owners.ravel()) if along is None else along_axis(along[1], target, along[0])


@dataclass(frozen=True, slots=True)
class _Index:
    """The index of one axis: a tensor of indices, or the indices along an axis of a mask that are true there."""

    position: int | None
    mask_axis: int | None
    dims: int

    def read(self, node: NodeView, field: str) -> np.ndarray:
        """The indices themselves."""
        values = _read(node, field, self.position)
        return values if self.mask_axis is None else np.nonzero(values)[self.mask_axis]


def _by_axis(indices: Sequence[Tensor | None], single: bool = False) -> list[_Index | None]:
    """The indices of x[indices] by axis of x; a mask has one for each of its own axes."""
    found: list[_Index | None] = []
    for k, index in enumerate(indices):
        position = None if single else k
        if index is None:
            found.append(None)
        elif index.dtype not in (torch.bool, torch.uint8):
            found.append(_Index(position, None, index.dim()))
        elif index.dim():
            found.extend(_Index(position, axis, 1) for axis in range(index.dim()))
        else:
            raise UnprovenError("one truth value as an index")
    return found


def _index_axes(indices: Sequence[_Index | None], axes: int) -> tuple[dict[int, int], range]:
    """How x[indices] moves axes: from the result to those of x without an index, and which axes the indices make."""
    used = [axis for axis, index in enumerate(indices) if index is not None]
    width = max(index.dims for index in indices if index is not None)
    adjacent = used == list(range(used[0], used[-1] + 1))
    start, free = used[0] if adjacent else 0, [axis for axis in range(axes) if axis not in used]
    order = [*free[:start], *[None] * width, *free[start:]] if adjacent else [*[None] * width, *free]
    return {a: b for a, b in enumerate(order) if b is not None}, range(start, start + width)


@layout_rule("Index UnsafeIndex", "indices")
@single
def index(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    return layout if layout.is_constant else _indexed(node, "indices", _by_axis(node.fields["indices"]), layout, target)


@layout_rule("IndexSelect", "dim index")
@single
def index_select(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    indices = (*[None] * axis_of(node.fields["dim"], len(target)), node.fields["index"])
    return layout if layout.is_constant else _indexed(node, "index", _by_axis(indices, single=True), layout, target)


def _indexed(node: NodeView, field: str, indices: Sequence[_Index | None], layout: Layout, target: Shape) -> Layout:
    source = node.outputs[0]
    axes, made = _index_axes(indices, len(target))
    axis, owners = examples_axis(layout, source)
    if axis in axes:
        return carry(layout, source, target, axes)
    shape = source[made.start : made.stop]
    wanted = np.broadcast_to(owners.reshape([-1 if k == axis - made.start else 1 for k in range(len(shape))]), shape)
    for along, values in enumerate(indices):  # the examples lie along an axis whose indices tell their owners apart
        if values is None or target[along] < 2:
            continue
        positions = np.broadcast_to(values.read(node, field) % target[along], shape)
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
    indices = _by_axis(node.fields["indices"])
    axes, made = _index_axes(indices, len(source))
    axis, owners = examples_axis(layout, source)
    results = {b: a for a, b in axes.items()}
    whole = len(axes) + len(made)  # axes of source[indices], with which the values align at the right
    if axis in results:
        at = results[axis]
    else:
        along = indices[axis]
        assert along is not None
        read = owners[along.read(node, "indices")]
        varying = _only_along(read)
        if varying is None:
            raise UnprovenError("an index of several axes along the examples")
        at, owners = made.stop - read.ndim + varying[0], varying[1]
    to = at + len(values) - whole
    one_each = to >= 0 and values[to] == len(owners)
    found = along_axis(owners, values, to) if one_each else collect(from_owners(owners))
    return [None if first is None else layout, found]


@layout_rule("MaskedScatter", "mask")
def masked_scatter(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A tensor, with elements of another one in its order where a mask is true."""
    layout, source = layouts[0], node.outputs[0]
    first, values = node.inputs[:2]
    if values is None or layout.is_constant:
        return [None if to is None else layout for to in node.inputs]
    mask, run = np.broadcast_to(_read(node, "mask"), source), 1
    while mask.ndim > 1 and (mask == mask[..., :1]).all():
        longer = run * mask.shape[-1]
        if layout.step % longer or prod(values) % longer:
            break
        mask, run = mask[..., 0], longer
    owners = element_list(Layout(layout.step // run, layout.owners), mask.size)[mask.ravel()]
    unused = np.full(prod(values) // run - len(owners), -1)
    return [None if first is None else layout, from_owners(np.concatenate([owners, unused]), run)]


@layout_rule("MaskedSelect", "mask")
@single
def masked_select(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """The elements of a tensor where a mask is true, in its order."""
    if layout.is_constant:
        return layout
    mask = np.broadcast_to(_read(node, "mask"), target).ravel()
    owners = np.full(len(mask), -1)
    owners[mask] = element_list(layout, int(mask.sum()))
    return from_owners(owners)


@layout_rule("SegmentReduce", "axis lengths offsets")
@single
def segment_reduce(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Consecutive indices of an axis, of given numbers, reduced to one each."""
    if layout.is_constant:
        return layout
    axis, owners = examples_axis(layout, source)
    if axis != axis_of(node.fields["axis"], len(target)):
        return carry(layout, source, target, {axis: axis})
    if axis:
        raise UnprovenError("segments of other lengths for each example")
    by_length = node.fields["lengths"] is not None
    lengths = _read(node, "lengths") if by_length else np.diff(_read(node, "offsets"))
    rows = np.repeat(owners, lengths)
    return along_axis(np.concatenate([rows, np.full(target[0] - len(rows), -1)]), target, 0)
