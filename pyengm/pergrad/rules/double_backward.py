"""Backward functions as nodes, in graphs of losses that contain a gradient: layout rules, and gradients of weights.

Such a node has the gradient of its operation's output in slot 0 and what the operation took in later slots; its outputs
are the gradients of the operation's inputs. Shapes: N images, C channels, R rows, D features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.conv_grad import ConvGrad, Geometry
from pyengm.pergrad.layout import Layout, Shape, carry, collect, take
from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.elementwise import aligned_axes
from pyengm.pergrad.rules.norm import channel_sums
from pyengm.pergrad.rules.outputs import merged
from pyengm.pergrad.rules.registry import LayoutRule, Layouts, NodeView, axis_of, layout_rule, single
from pyengm.pergrad.rules.weights import Node, RowAxes, Slots, saved, to_float32, weight_rule


def _of(names: str, suffix: str = "Backward") -> str:
    """The names of the nodes that backward functions themselves have."""
    return " ".join(f"{name}{suffix}Backward0" for name in names.split())


@layout_rule(
    _of("""
    BinaryCrossEntropy Elu Gelu Hardshrink Hardswish Hardtanh HuberLoss LeakyRelu LogSigmoid MseLoss NativeDropout
    PreluKernel RreluWithNoise Sigmoid SmoothL1Loss SoftMarginLoss Softplus Softshrink Tanh Threshold
    """)
)
def elementwise(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return carry(layout, source, to, aligned_axes(source, to))

    return merged(node, layouts, below)


@layout_rule("LogSoftmaxBackwardDataBackward0 SoftmaxBackwardDataBackward0 GluBackwardBackward0", "dim")
def mix_along(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gradient and result, or input, of an operation that mixes one axis."""
    axis = axis_of(node.fields["dim"], len(node.outputs[0]))

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return carry(layout, source, to, {a: a for a in range(len(source)) if a != axis})

    return merged(node, layouts, below)


def _mix_last(count: int) -> LayoutRule:
    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return carry(layout, source, to, {axis: axis for axis in range(len(source) - count)})

    return lambda node, layouts: merged(node, layouts, below)


layout_rule(
    _of("ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D"),
)(_mix_last(1))
layout_rule(
    _of("""
    AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D FractionalMaxPool2D MaxPool2D MaxPool2DWithIndices ReflectionPad2D
    ReplicationPad2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D UpsampleBilinear2DAa UpsampleLanczos2DAa
    UpsampleNearest2D UpsampleNearestExact2D
    """)
)(_mix_last(2))
layout_rule(
    _of("""
    AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D FractionalMaxPool3D MaxPool3DWithIndices ReflectionPad3D
    ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D
    """)
)(_mix_last(3))


@layout_rule(_of("NllLoss NllLoss2D"))
def nll_loss(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gradients of losses (N, ...) and log-probabilities (N, C, ...)."""

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        axes = {a: a - (a > 1) for a in range(len(source)) if a != 1} if slot == 0 else {a: a for a in range(len(to))}
        return carry(layout, source, to, {a: b for a, b in axes.items() if b < len(to)})

    return merged(node, layouts, below)


@layout_rule(_of("Select"), "dim index")
@single
def select(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """One index of an axis of zeros."""
    axis = axis_of(node.fields["dim"], len(source))
    kept = (*target[:axis], 1, *target[axis:])
    return take(layout, source, kept, axis, np.arange(source[axis])[[node.fields["index"]]])


@layout_rule(_of("Slice"), "dim start end step")
@single
def slice_along(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """A slice of an axis of zeros."""
    axis = axis_of(node.fields["dim"], len(source))
    start, end, step = (node.fields[name] for name in ("start", "end", "step"))
    return take(layout, source, target, axis, np.arange(source[axis])[start:end:step])


@layout_rule(_of("EmbeddingDense"))
@single
def embedding(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """A table (V, D) of sums over all positions."""
    return carry(layout, source, target, {1: len(target) - 1})


@layout_rule(_of("Convolution"))
def convolution_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gradients of image, weight and bias; the images' axis alone is kept."""

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        return carry(layout, source, to, {0: 0}) if output == 0 and slot < 2 else collect(layout)

    return merged(node, layouts, below)


@layout_rule(_of("NativeBatchNorm"), "train")
def batch_norm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Statistics of the batch couple the images."""

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        if output:
            return collect(layout) if slot < 2 else carry(layout, source, to, {0: 0})
        if slot >= 2:
            return carry(layout, source, to, {1: 0})
        return carry(
            layout, source, to, {1: 1} if node.fields["train"] is not False else {a: a for a in range(len(to))}
        )

    return merged(node, layouts, below)


@layout_rule(_of("NativeLayerNorm"), "normalized_shape")
def layer_norm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Gradients of rows; slots from 4 on are scale and shift, slots 2 and 3 the moments of the rows."""
    leading = len(node.outputs[0]) - len(node.fields["normalized_shape"])

    def below(output: int, slot: int, layout: Layout, source: Shape, to: Shape) -> Layout:
        if output:
            return collect(layout)
        if slot >= 4:
            return carry(layout, source, to, {axis: axis - leading for axis in range(leading, len(source))})
        return carry(layout, source, to, {axis: axis for axis in range(leading)})

    return merged(node, layouts, below)


@weight_rule(
    _of("Convolution"),
    slots=(2,),
    fields="grad_output weight stride padding dilation transposed output_padding groups",
    accepts_half=True,
)
def convolution(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """dx is linear in the weight, and <g, dx> = <W * g, dy>: the gradient is that of a convolution of g."""
    dims = g.dim() - 2
    names = ("stride", "padding", "dilation", "output_padding")
    of_dims = {name: tuple(saved(node, name)) for name in names}
    of_dims = {name: values * dims if len(values) == 1 else values for name, values in of_dims.items()}
    geometry = Geometry(**of_dims, transposed=saved(node, "transposed"), groups=saved(node, "groups"))
    return {2: ConvGrad(rows.split(g), rows.split(saved(node, "grad_output")), saved(node, "weight"), geometry)}


@weight_rule(_of("NativeBatchNorm"), slots=(2,), fields="eps grad_out running_var train")
def batch_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """dx = dy gamma rstd for given statistics."""
    if saved(node, "train"):
        raise UnsupportedOperationError("the statistics of the batch depend on all examples")
    rstd = torch.rsqrt(to_float32(saved(node, "running_var")) + saved(node, "eps"))
    _, dot = channel_sums(g, to_float32(saved(node, "grad_out")))
    return {2: DenseGrad(rows.sums(dot * rstd), slots[2])}


def _feature_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    return shape, tuple(range(len(shape) - len(saved(node, "normalized_shape"))))


@weight_rule(_of("NativeLayerNorm"), slots=(4,), fields="grad_out input normalized_shape mean rstd", rows=_feature_rows)
def layer_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """dx = P(dy gamma) rstd with a symmetric projection P, so the gradient is sum_r P(g) dy rstd."""
    features = torch.Size(saved(node, "normalized_shape")).numel()
    g, x, dy = (t.reshape(-1, features) for t in (g, *(to_float32(saved(node, k)) for k in ("input", "grad_out"))))
    mean, rstd = (to_float32(saved(node, name)).reshape(-1, 1) for name in ("mean", "rstd"))
    xhat = (x - mean) * rstd
    projected = g - g.mean(1, keepdim=True) - xhat * (g * xhat).mean(1, keepdim=True)
    return {4: DenseGrad(rows.sums(projected * dy * rstd), slots[4])}
