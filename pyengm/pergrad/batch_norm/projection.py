"""Per-example gradients along the few directions of a layer's input in which batch statistics change them.

With g the gradient of a layer's output under constant statistics, the statistics of a batch norm b that the output
reaches subtract (S1_bic + xhat_bjtc S2_bic) / M from the gradient of loss i at every position t of every image j,
M the number of these positions, S1_bic = sum_t g_bitc and S2_bic = sum_t g_bitc xhat_bitc. So for layer input a, row c
of the weight and loss i they subtract

    sum_b S1_bic mean(a) + sum_b S2_bic mean(a xhat_bc), means over the batch's positions,

and what passes through norms further on subtracts other means of a. All these means lie close to the span of the
leading principal directions Q of a, around zero. So only the part of a gradient along Q, F_i Q, needs correction:
`LayerSketch` holds it, and what the norms right behind the layer add to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from pyengm.pergrad.batch_norm.frozen import FrozenNorm, Sums
from pyengm.pergrad.conv_grad import ConvGrad
from pyengm.pergrad.per_example_grad import DenseGrad, OuterProductGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout

RANK = 8  # directions of a layer's input
Layer = ConvGrad | OuterProductGrad


class Bases(dict[int, Tensor]):
    """Q (G, I, rank) of layers, by group of parameters."""

    def orthonormal(self) -> "Bases":
        return Bases({row: torch.linalg.qr(basis).Q.contiguous() for row, basis in self.items()})


@dataclass
class LayerSketch:
    """own: F_i Q, the gradients along Q; push: what the norms right behind the layer add; (n, O, rank) each.

    along: maps gradients (m, *shape) of the weight to (m, O, rank).
    """

    own: Tensor
    push: Tensor
    along: Callable[[Tensor], Tensor]

    def of(self, examples: Sequence[int] | slice) -> "LayerSketch":
        return LayerSketch(self.own[examples], self.push[examples], self.along)


def is_layer(gradient: PerExampleGrad) -> TypeGuard[Layer]:
    """Whether the gradient has a sketch."""
    if isinstance(gradient, ConvGrad):
        return not gradient.geometry.transposed
    return isinstance(gradient, OuterProductGrad) and gradient.a.shape[1] == 1


def first_basis(layer: Layer) -> Tensor:
    """(G, I, rank): where the search for directions starts, always the same."""
    groups, inputs = layer.input_shape()
    generator = torch.Generator().manual_seed(inputs)
    start = torch.randn(inputs, min(RANK, inputs), generator=generator, dtype=torch.float64)
    return start.to(layer.g).expand(groups, -1, -1)


def refine(layer: Layer, basis: Tensor) -> Tensor:
    """A step of subspace iteration toward the principal directions of the input: (G, I, rank), not orthonormal."""
    for _ in range(2):
        basis = layer.input_products(layer.features(torch.linalg.qr(basis).Q))
    return basis


def sketch(
    layer: Layer,
    y: Tensor,
    norms: Sequence[FrozenNorm],
    rows: dict[int, RowLayout],
    sums: dict[int, Sums],
    basis: Tensor,
) -> LayerSketch:
    """The gradients of a layer along its basis, and what the norms that it reaches through additions add to them.

    y: the layer's input along the basis, (n, G, T, rank).
    """
    own = layer.along_features(y)  # (n, O, rank)
    push = torch.zeros_like(own)
    positions = layer.n * y.shape[2]
    mean = y.mean((0, 2))[:, None]  # (G, 1, rank)
    for norm in norms:
        first, second = sums[norm.index]
        x, center, rstd = norm.saved()
        products = (layer.outputs(rows[norm.index].split(x)) @ y).sum(0) / positions  # (G, O / G, rank)
        centered = torch.addcmul(products, center.view(len(mean), -1, 1), mean, value=-1)
        means = centered.mul_(rstd.view(len(mean), -1, 1))
        push.addcmul_(first[:, :, None], mean.expand_as(means).flatten(0, 1), value=-1)
        push.addcmul_(second[:, :, None], means.flatten(0, 1), value=-1)
    return LayerSketch(own, push, partial(type(layer).along, basis=basis))


def correct_bias(gradient: DenseGrad, sums: Sequence[Sums]) -> DenseGrad:
    """The gradient of a bias before norms: the mean of its input, 1, is 1, and that of xhat is 0."""
    values = gradient.values
    for first, _ in sums:
        values = values - first.view_as(values)
    return DenseGrad(values, gradient.shape)
