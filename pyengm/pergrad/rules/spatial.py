"""Layout rules of pooling, resampling and sampling: the last axes mix, the leading ones stay."""

from collections.abc import Mapping

from pyengm.pergrad.layout import Layout, Shape, carry
from pyengm.pergrad.rules.registry import LayoutRule, Layouts, NodeView, layout_rule, single


def _mix_last(count: int) -> LayoutRule:
    @single
    def rule(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
        return carry(layout, source, target, {axis: axis for axis in range(len(target) - count)})

    return rule


layout_rule("UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D")(_mix_last(1))
layout_rule("""
    AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D Col2Im FractionalMaxPool2D Im2Col MaxPool2D MaxPool2DWithIndices
    MaxUnpool2D MkldnnAdaptiveAvgPool2D MkldnnMaxPool2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D
    UpsampleBilinear2DAa UpsampleLanczos2DAa UpsampleNearest2D UpsampleNearestExact2D
""")(_mix_last(2))
layout_rule("""
    AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D ChannelShuffle FractionalMaxPool3D MaxPool3DWithIndices MaxUnpool3D
    MkldnnMaxPool3D PixelShuffle PixelUnshuffle UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D
""")(_mix_last(3))


@layout_rule("GridSampler2D GridSampler2DCpuFallback GridSampler3D")
def grid_sample(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Images (N, C, ...) sampled at positions (N, ..., 2 or 3)."""
    layout, source = layouts[0], node.outputs[0]
    axes = ({0: 0, 1: 1}, {0: 0} | {axis: axis - 1 for axis in range(2, len(source))})
    return [None if to is None else carry(layout, source, to, of) for to, of in zip(node.inputs, axes, strict=True)]
