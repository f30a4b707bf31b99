"""Layout rules of operations that move elements: views, permutations, slices, joins, padding, shifts and repeats."""

from collections.abc import Mapping
from itertools import accumulate
from math import prod

import numpy as np

from pyengm.pergrad.layout import (
    NOBODY,
    Layout,
    Shape,
    UnprovenError,
    along_axis,
    carry,
    collect,
    examples_axis,
    locate,
    merge,
    of_one,
    owners_along,
    put,
    take,
)
from pyengm.pergrad.rules.elementwise import aligned_axes
from pyengm.pergrad.rules.registry import Layouts, NodeView, axis_of, layout_rule, single


@layout_rule("""
    ReshapeAlias ReshapeCopy Squeeze SqueezeBackward1 SqueezeBackward2 SqueezeBackward3 SqueezeBackward4
    SqueezeBackward5 UnsafeView Unsqueeze UnsqueezeBackward1 View ViewBackward1
""")
@single
def view(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if prod(source) != prod(target):
        raise UnprovenError("a view of another size")
    return layout


@layout_rule("Permute", "dims")
@single
def permute(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    return carry(layout, source, target, {a: axis_of(d, len(target)) for a, d in enumerate(node.fields["dims"])})


@layout_rule("T TBackward1")
@single
def transpose_matrix(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    return layout if len(target) < 2 else carry(layout, source, target, {0: 1, 1: 0})


@layout_rule("Transpose TransposeBackward1 SwapaxesBackward0 SwapdimsBackward0", "dim0 dim1")
@single
def transpose(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    axes = list(range(len(target)))
    if not axes:
        return layout
    first, second = (axis_of(node.fields[name], len(target)) for name in ("dim0", "dim1"))
    axes[first], axes[second] = second, first
    return carry(layout, source, target, dict(enumerate(axes)))


@layout_rule("Slice", "dim start end step")
@single
def slice_along(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    axis = axis_of(node.fields["dim"], len(target))
    start, end, step = (node.fields[name] for name in ("start", "end", "step"))
    return put(layout, source, target, axis, np.arange(target[axis])[start:end:step])


@layout_rule("Select", "dim index")
@single
def select(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    axis = axis_of(node.fields["dim"], len(target))
    kept = (*source[:axis], 1, *source[axis:])
    return put(layout, kept, target, axis, np.arange(target[axis])[[node.fields["index"]]])


@layout_rule("Diagonal", "offset dim1 dim2")
@single
def diagonal(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    taken = {axis_of(node.fields[name], len(target)) for name in ("dim1", "dim2")}
    kept = [axis for axis in range(len(target)) if axis not in taken]
    if not layout.is_constant and locate(layout, source)[0] == len(source) - 1:
        raise UnprovenError("a diagonal along the examples")
    return carry(layout, source, target, dict(enumerate(kept)))


def _pieces(node: NodeView, layouts: Mapping[int, Layout], starts: list[int], keeps_axis: bool) -> Layouts:
    """The outputs are disjoint pieces of the input along one axis, output k from starts[k] on."""
    (target,) = node.inputs
    if target is None:
        return [None]
    axis, found = axis_of(node.fields["dim"], len(target)), NOBODY
    for k, layout in layouts.items():
        source = node.outputs[k]
        source = source if keeps_axis else (*source[:axis], 1, *source[axis:])
        piece = put(layout, source, target, axis, np.arange(starts[k], starts[k] + source[axis]))
        both = merge(found, piece)
        if both is None:
            raise UnprovenError("the pieces of a split belong to different examples")
        found = both
    return [found]


@layout_rule("Split UnsafeSplit", "dim split_size")
def split(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    size = node.fields["split_size"]
    return _pieces(node, layouts, [k * size for k in range(len(node.outputs))], True)


@layout_rule("SplitWithSizes UnsafeSplitWithSizes", "dim split_sizes")
def split_with_sizes(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    return _pieces(node, layouts, [0, *accumulate(node.fields["split_sizes"])], True)


@layout_rule("Unbind", "dim")
def unbind(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    return _pieces(node, layouts, list(range(len(node.outputs))), False)


@layout_rule("Cat", "dim")
def cat(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source = layouts[0], node.outputs[0]
    axis = axis_of(node.fields["dim"], len(source))
    owners = owners_along(layout, source, axis)
    if layout.is_constant or owners is None:
        others = {a: a for a in range(len(source)) if a != axis}
        return [None if to is None else carry(layout, source, to, others) for to in node.inputs]
    joined = [to[axis] if len(to) == len(source) else 0 for to in node.inputs if to is not None]
    constants, rest = sum(to is None for to in node.inputs), source[axis] - sum(joined)
    found: Layouts = []
    start = 0
    for k, to in enumerate(node.inputs):
        if to is None:  # the lengths of constants are not saved; one of them is what the others leave
            if constants > 1 and any(node.inputs[k + 1 :]):
                raise UnprovenError("several constants of unknown lengths are joined along the examples")
            found.append(None)
            start += rest
        elif len(to) != len(source):  # an empty tensor of one axis
            found.append(NOBODY)
        else:
            found.append(along_axis(owners[start : start + to[axis]], to, axis))
            start += to[axis]
    return found


@layout_rule("Stack", "dim")
def stack(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source = layouts[0], node.outputs[0]
    axis = axis_of(node.fields["dim"], len(source))
    owners = owners_along(layout, source, axis)
    if owners is not None:
        return [None if to is None else of_one(owners[k]) for k, to in enumerate(node.inputs)]
    others = {a: a - (a > axis) for a in range(len(source)) if a != axis}
    return [None if to is None else carry(layout, source, to, others) for to in node.inputs]


def _padded(pads: tuple[int, ...], axis: int, axes: int) -> tuple[int, int]:
    """What torch's list of paddings, the last axis first, adds before and after an axis."""
    k = 2 * (axes - 1 - axis)
    return (pads[k], pads[k + 1]) if k + 1 < len(pads) else (0, 0)


@layout_rule("ConstantPadNd", "pad")
@single
def constant_pad(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, owners = examples_axis(layout, source)
    before, after = _padded(node.fields["pad"], axis, len(source))
    if not before and not after:
        return carry(layout, source, target, {axis: axis})
    shown = np.full(target[axis], -1)
    inside = np.arange(max(before, 0), source[axis] - max(after, 0))
    shown[inside - before] = owners[inside]
    return along_axis(shown, target, axis)


@layout_rule(
    "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D", "padding"
)
@single
def mirror_pad(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, _ = locate(layout, source)
    if any(_padded(node.fields["padding"], axis, len(source))):
        raise UnprovenError("padding along the examples")
    return carry(layout, source, target, {axis: axis})


@layout_rule("Flip", "dims")
@single
def flip(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, owners = examples_axis(layout, source)
    if axis not in {axis_of(dim, len(target)) for dim in node.fields["dims"]}:
        return layout
    return along_axis(owners[::-1], target, axis)


@layout_rule("Roll", "dims shifts")
@single
def roll(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    dims, shifts = node.fields["dims"], node.fields["shifts"]
    if not dims:
        raise UnprovenError("a roll of the flattened tensor")
    axis, owners = examples_axis(layout, source)
    shift = sum(k for k, dim in zip(shifts, dims, strict=True) if axis_of(dim, len(target)) == axis)
    return along_axis(np.roll(owners, -shift), target, axis)


@layout_rule("Repeat", "repeats")
@single
def repeat(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if layout.is_constant:
        return layout
    axis, _ = locate(layout, source)
    if axis not in aligned_axes(source, target):
        return collect(layout)
    wide = (1,) * (len(source) - len(target)) + target
    return put(layout, source, wide, axis, np.arange(source[axis]) % wide[axis])


@layout_rule("Unfold", "dimension")
@single
def unfold(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    if not target:
        return layout
    axis = axis_of(node.fields["dimension"], len(target))
    return carry(layout, source, target, {a: a for a in range(len(target)) if a != axis})


@layout_rule("AsStrided AsStridedBackward1", "size stride")
@single
def as_strided(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Adaptive average pooling to 1 x 1 of channels-last data writes other strides for axes of one index only."""
    if layout.is_constant:
        return layout
    n, c = (*source, 0, 0)[:2]
    same = source == target == (n, c, 1, 1) and node.fields["stride"] == (c, 1, c, c)
    if node.child == "MeanBackward1" and same:
        return layout
    raise UnprovenError("the strides of the input are not saved")


@layout_rule("SliceScatter", "dim start end step")
def slice_scatter(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A tensor, with another one in place of a slice."""
    (base, values), layout, source = node.inputs, layouts[0], node.outputs[0]
    axis = axis_of(node.fields["dim"], len(source))
    start, end, step = (node.fields[name] for name in ("start", "end", "step"))
    shown = np.arange(source[axis])[start:end:step]
    return [
        None if base is None else layout,
        None if values is None else take(layout, source, values, axis, shown),
    ]


@layout_rule("SelectScatter", "dim index")
def select_scatter(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A tensor, with another one in place of one index of an axis."""
    (base, values), layout, source = node.inputs, layouts[0], node.outputs[0]
    axis = axis_of(node.fields["dim"], len(source))
    shown = np.arange(source[axis])[[node.fields["index"]]]
    kept = (*source[:axis], 1, *source[axis + 1 :])
    return [None if base is None else layout, None if values is None else take(layout, source, kept, axis, shown)]


@layout_rule("torch::autograd::CopySlices")
def copy_slices(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A write in place to a view: what was written is not visible, and it may mix, as cumsum_ does."""
    layout = layouts[0]
    if not layout.is_constant:
        raise UnprovenError("a write in place to a view, which the graph does not describe")
    return [None if to is None else layout for to in node.inputs]
