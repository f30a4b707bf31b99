"""Layout rules of fused recurrent cells and layers."""

from collections.abc import Callable, Mapping

from pyengm.pergrad.layout import NOBODY, Layout, Shape, UnprovenError, carry, collect, merge
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule

Below = Callable[[int, Layout, Shape, Shape], Layout]  # of a slot, from the layout and shape of one output


def _merged(node: NodeView, layouts: Mapping[int, Layout], below: Below) -> Layouts:
    """The outputs of a recurrent node depend on the same inputs, and their layouts must agree."""
    found: Layouts = [None if to is None else NOBODY for to in node.inputs]
    for k, layout in layouts.items():
        for slot, to in enumerate(node.inputs):
            before = found[slot]
            if to is None or before is None:
                continue
            both = merge(before, below(slot, layout, node.outputs[k], to))
            if both is None:
                raise UnprovenError("the outputs of a recurrent node belong to different examples")
            found[slot] = both
    return found


@layout_rule("ThnnFusedGruCell ThnnFusedLstmCell")
def cell(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gates and states are (N, *); the other inputs are biases."""
    return _merged(
        node, layouts, lambda slot, layout, source, to: carry(layout, source, to, {0: 0} if len(to) == 2 else {})
    )


@layout_rule("MkldnnRnnLayer")
def mkldnn_layer(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Input (T, N, I), four weights, states (..., N, H); outputs (T, N, H) and states."""

    def below(slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return collect(layout) if 1 <= slot <= 4 else carry(layout, source, to, {len(source) - 2: len(to) - 2})

    return _merged(node, layouts, below)
