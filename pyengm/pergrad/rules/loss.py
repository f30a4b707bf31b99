"""Layout rules of loss functions that are nodes of their own; the others are elementwise."""

from pyengm.pergrad.layout import Layout, Shape, carry
from pyengm.pergrad.rules.registry import NodeView, layout_rule, single


@layout_rule("NllLoss NllLoss2D NllLossNd")
@single
def nll_loss(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Losses (N, ...) of log-probabilities (N, C, ...)."""
    if len(target) < 2:
        return layout
    return carry(layout, source, target, {0: 0} | {axis: axis + 1 for axis in range(1, len(source))})


@layout_rule("MultiMarginLoss MultilabelMarginLoss")
@single
def margin_loss(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Losses (N,) of scores (N, C)."""
    return carry(layout, source, target, {0: 0} if len(target) == 2 and source else {})


@layout_rule("CtcLoss CtcLossBackward1")
@single
def ctc_loss(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Losses (N,) of log-probabilities (T, N, C)."""
    return carry(layout, source, target, {0: 1})
