"""Normalisation layers: layout rules, and the gradients of scales and shifts.

Shapes: N images, C channels, D features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyengm.ops import row_sums
from pyengm.pergrad.layout import Layout, Shape, carry, locate
from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.conv import by_group
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule
from pyengm.pergrad.rules.weights import Node, RowAxes, Slots, saved, to_float32, weight_rule

BATCH_NORMS = "CudnnBatchNorm MiopenBatchNorm NativeBatchNorm"


def _channels(layout: Layout, source: Shape, inputs: tuple[Shape | None, ...]) -> Layouts:
    return [None if to is None else carry(layout, source, to, {1: 0}) for to in inputs]


@layout_rule(
    f"{BATCH_NORMS} BatchNormNoUpdate BatchNormWithUpdate NativeBatchNormLegit NativeBatchNormLegitBackward1 "
    "NativeBatchNormLegitNoTraining",
    "training",
)
def batch_norm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """With statistics of the batch, the channels alone stay apart; to the engine, frozen statistics are no training."""
    layout, source, x = layouts[0], node.outputs[0], node.inputs[0]
    couples = node.fields["training"] is not False
    axes = {1: 1} if couples else {axis: axis for axis in range(len(source))}
    first = None if x is None else carry(layout, source, x, axes)
    return [first, *_channels(layout, source, node.inputs[1:])]


@layout_rule("NativeGroupNorm", "group")
def group_norm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source, x = layouts[0], node.outputs[0], node.inputs[0]
    if layout.is_constant:
        return [None if to is None else layout for to in node.inputs]
    first = None
    if x is not None:
        in_channels = locate(layout, source)[0] == 1
        groups = node.fields["group"]
        first = by_group(layout, source, x, 1, groups) if in_channels else carry(layout, source, x, {0: 0})
    return [first, *_channels(layout, source, node.inputs[1:])]


@layout_rule("FusedRmsNorm NativeLayerNorm", "normalized_shape")
def layer_norm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source, x = layouts[0], node.outputs[0], node.inputs[0]
    leading = len(source) - len(node.fields["normalized_shape"])
    first = None if x is None else carry(layout, source, x, {axis: axis for axis in range(leading)})
    features = {axis: axis - leading for axis in range(leading, len(source))}
    return [first, *(None if to is None else carry(layout, source, to, features) for to in node.inputs[1:])]


@weight_rule("NativeGroupNorm", slots=(1, 2), fields="N group input result1 result2")
def group_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """y = xhat gamma + beta: the gradients are sum_t g xhat and sum_t g per channel."""
    n, groups = saved(node, "N"), saved(node, "group")
    mean, rstd = (to_float32(saved(node, name)).view(n, groups, 1) for name in ("result1", "result2"))
    total, dot = channel_sums(g, to_float32(saved(node, "input")))
    dot = torch.addcmul(dot.view(n, groups, -1), total.view(n, groups, -1), mean, value=-1).mul_(rstd)
    return _affine(slots, dot.view(n, -1), total, rows)


@weight_rule("CudnnBatchNorm MiopenBatchNorm", slots=(1, 2), fields="input result1 result2 weight")
@weight_rule(
    "NativeBatchNorm", slots=(1, 2), fields="eps input result1 result2 running_mean running_var training weight"
)
def batch_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """Batch norm with given statistics or those of the batch, held constant; cuDNN's and MIOpen's nodes only train."""
    if getattr(node, "_saved_training", True):
        mean, rstd = to_float32(saved(node, "result1")), to_float32(saved(node, "result2"))
    else:
        mean, rstd = to_float32(saved(node, "running_mean")), to_float32(saved(node, "running_var"))
        rstd = torch.rsqrt(rstd + saved(node, "eps"))
    total, dot = channel_sums(g, to_float32(saved(node, "input")))
    return _affine(slots, torch.addcmul(dot, total, mean, value=-1).mul_(rstd), total, rows)


def _feature_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    return shape, tuple(range(len(shape) - len(saved(node, "normalized_shape"))))


@weight_rule("NativeLayerNorm", slots=(1, 2), fields="input normalized_shape result1 result2", rows=_feature_rows)
def layer_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """Layer norm over the last axes; its rows are all the positions of all examples."""
    features = torch.Size(saved(node, "normalized_shape")).numel()
    g, x = (t.reshape(-1, features) for t in (g, to_float32(saved(node, "input"))))
    mean, rstd = (to_float32(saved(node, name)).reshape(-1, 1) for name in ("result1", "result2"))
    found: dict[int, PerExampleGrad] = {}
    if 1 in slots:
        found[1] = DenseGrad(rows.sums((x - mean).mul_(rstd).mul_(g)), slots[1])
    if 2 in slots:
        found[2] = DenseGrad(rows.sums(g), slots[2])
    return found


@weight_rule("FusedRmsNorm", slots=(1,), fields="input normalized_shape result1", rows=_feature_rows)
def rms_norm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """RMS norm where torch runs it as one kernel; elsewhere it is a product like any other."""
    features = torch.Size(saved(node, "normalized_shape")).numel()
    g, x = (t.reshape(-1, features) for t in (g, to_float32(saved(node, "input"))))
    xhat = x * to_float32(saved(node, "result1")).reshape(-1, 1)
    return {1: DenseGrad(rows.sums(g * xhat), slots[1])}


def channel_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sum_t g and sum_t g x for g and x (N, C, *positions); (N, C) each."""
    n, c = g.shape[:2]
    sums, dots = row_sums(g.reshape(n * c, -1), x.reshape(n * c, -1))
    return sums.view(n, c), dots.view(n, c)


def _affine(slots: Slots, weight: Tensor, bias: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """weight, bias: (N, C) sums over the positions of each image."""
    found: dict[int, PerExampleGrad] = {}
    if 1 in slots:
        found[1] = DenseGrad(rows.sums(weight), slots[1])
    if 2 in slots:
        found[2] = DenseGrad(rows.sums(bias), slots[2])
    return found
