"""Convolutions of one, two and three dimensions: the layout rule, and the gradients of weights and biases."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from pyengm.pergrad.conv_grad import ConvGrad, Geometry
from pyengm.pergrad.layout import Layout, Shape, along_axis, carry, collect, locate, owners_along
from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule
from pyengm.pergrad.rules.weights import Node, Slots, saved, to_float32, weight_rule


def by_group(layout: Layout, source: Shape, target: Shape, axis: int, groups: int) -> Layout:
    """The layout of a tensor whose axis falls into as many groups as axis 1 of the source, each from its own group."""
    owners = owners_along(layout, source, 1)
    if owners is None or groups < 2 or source[1] % groups or target[axis] % groups:
        return collect(layout)
    owned = [set(of_group) - {-1} for of_group in owners.reshape(groups, -1).tolist()]
    if max(map(len, owned)) > 1:
        return collect(layout)
    each = [of_group.pop() if of_group else -1 for of_group in owned]
    return along_axis(np.repeat(each, target[axis] // groups), target, axis)


@layout_rule(
    "ConvDepthwise2D ConvDepthwise3D Convolution ConvolutionBackward1 MkldnnConvolution SlowConv2D SlowConv3D "
    "SlowConvDilated2D SlowConvDilated3D SlowConvTranspose2D SlowConvTranspose3D",
    "groups transposed",
)
def convolution_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, source = layouts[0], node.outputs[0]
    x, weight, bias = (*node.inputs, None)[:3] if len(node.inputs) < 3 else node.inputs[:3]
    if layout.is_constant:
        return [None if to is None else layout for to in node.inputs]
    in_channels = locate(layout, source)[0] == 1  # the examples of per-example weights lie in groups of channels
    groups = node.fields["groups"] or 1
    found: Layouts = [None] * len(node.inputs)
    if x is not None:
        found[0] = by_group(layout, source, x, 1, groups) if in_channels else carry(layout, source, x, {0: 0})
    if weight is not None:
        if not in_channels:
            found[1] = collect(layout)
        elif node.fields["transposed"]:
            found[1] = by_group(layout, source, weight, 0, groups)
        else:
            found[1] = carry(layout, source, weight, {1: 0})
    if bias is not None:
        found[2] = carry(layout, source, bias, {1: 0})
    return found


@weight_rule(
    "Convolution",
    slots=(1, 2),
    fields="input weight stride padding dilation transposed output_padding groups",
    accepts_half=True,
)
def convolution(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """Convolutions and transposed ones, with any stride, padding, dilation and groups."""
    found: dict[int, PerExampleGrad] = {}
    if 2 in slots:
        found[2] = DenseGrad(rows.sums(to_float32(g).flatten(2).sum(2)), slots[2])
    if 1 in slots:
        dims = g.dim() - 2  # torch keeps padding="valid" as one value for all dimensions
        names = ("stride", "padding", "dilation", "output_padding")
        of_dims = {name: tuple(saved(node, name)) for name in names}
        of_dims = {name: values * dims if len(values) == 1 else values for name, values in of_dims.items()}
        geometry = Geometry(**of_dims, transposed=saved(node, "transposed"), groups=saved(node, "groups"))
        found[1] = ConvGrad(rows.split(saved(node, "input")), rows.split(g), saved(node, "weight"), geometry)
    return found
