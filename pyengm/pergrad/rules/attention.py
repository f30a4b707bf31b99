"""Layout rules of torch's fused attention."""

from collections.abc import Mapping

from pyengm.pergrad.layout import Layout, carry
from pyengm.pergrad.rules.elementwise import aligned_axes
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule


@layout_rule("""
    ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention ScaledDotProductFlashAttention
    ScaledDotProductFlashAttentionForCpu ScaledDotProductFusedAttentionOverrideable
""")
def attention(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Queries (B, H, L, E), keys and values (B, H, S, E), bias (B, H, L, S) up to broadcasting."""
    layout, source = layouts[0], node.outputs[0]
    found: Layouts = []
    for slot, to in enumerate(node.inputs):
        if to is None or slot > 3:
            found.append(None)
        elif slot == 3:
            axes = {a: b for a, b in aligned_axes(source, to).items() if a < 3}
            found.append(carry(layout, source, to, axes))
        else:
            found.append(carry(layout, source, to, {0: 0, 1: 1, 2: 2} if slot == 0 else {0: 0, 1: 1}))
    return found
