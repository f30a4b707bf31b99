"""Layout rules of reductions, and of operations that mix the indices of one axis."""

from collections.abc import Mapping
from typing import Any

from pyengm.pergrad.layout import NOBODY, Layout, Shape, UnprovenError, carry, merge
from pyengm.pergrad.rules.registry import Layouts, NodeView, axis_of, layout_rule, single


def _axes(dim: Any, axes: int) -> set[int]:
    if dim is None or dim == ():
        return set(range(axes))
    return {axis_of(one, axes) for one in (dim if isinstance(dim, tuple) else (dim,))}


@layout_rule(
    """
    Amax Amin Aminmax Kthvalue LinalgVectorNorm Logsumexp Max MaxBackward1 Mean MeanBackward1 Median MedianBackward1 Min
    MinBackward1 Mode Nanmean Nanmedian NanmedianBackward1 Nansum Norm NormBackward1 NormBackward2 NormBackward3 Prod
    ProdBackward1 Std StdMean Sum SumBackward1 Var VarMean
    """,
    "dim",
)
def reduce(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """An element of the input reaches the outputs at its remaining indices."""
    target = node.inputs[0]
    if target is None:
        return [None] * len(node.inputs)
    found = NOBODY
    for k, layout in layouts.items():
        source = node.outputs[k]
        gone = set() if len(source) == len(target) else _axes(node.fields["dim"], len(target))
        remaining = [axis for axis in range(len(target)) if axis not in gone]
        both = merge(found, carry(layout, source, target, dict(enumerate(remaining))))
        if both is None:
            raise UnprovenError("the results of a reduction belong to different examples")
        found = both
    return [found, *[None] * (len(node.inputs) - 1)]


@layout_rule(
    """
    Cummax Cummin Cumprod Cumsum Glu LogSoftmax Logcumsumexp MaskedSoftmax SafeSoftmax Softmax Sort SortBackward1 Topk
    """,
    "dim",
)
@single
def mix_along(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Along one axis every element of the output may depend on every element of the input."""
    axis = axis_of(node.fields["dim"], len(target))
    return carry(layout, source, target, {a: a for a in range(len(target)) if a != axis})
