"""Layout rules of fused recurrent cells and layers."""

from collections.abc import Mapping

from pyengm.pergrad.layout import Layout, Shape, carry, collect
from pyengm.pergrad.rules.outputs import merged
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule


@layout_rule("ThnnFusedGruCell ThnnFusedLstmCell")
def cell(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gates and states are (N, *); the other inputs are biases."""

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return carry(layout, source, to, {0: 0} if len(to) == 2 else {})

    return merged(node, layouts, below)


@layout_rule("MkldnnRnnLayer")
def mkldnn_layer(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Input (T, N, I), four weights, states (..., N, H); outputs (T, N, H) and states."""

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return collect(layout) if 1 <= slot <= 4 else carry(layout, source, to, {len(source) - 2: len(to) - 2})

    return merged(node, layouts, below)
