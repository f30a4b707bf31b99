"""Per-example gradients of layers whose outputs are normalised by batch norms in training mode.

With g the gradient of a layer's output under constant statistics, the statistics of a batch norm b that the output
reaches subtract (S1_bic + xhat_bjtc S2_bic) / M from the gradient of loss i at every position t of every image j,
M the number of these positions, S1_bic = sum_t g_bitc and S2_bic = sum_t g_bitc xhat_bitc. So for layer input a the
gradient of weight row c and loss i is

    sum_t g_itc a_it - sum_b S1_bic mean(a) - sum_b S2_bic mean(a xhat_bc), means over the batch's positions.

Between this layer and the norm the statistics count, all others are still held constant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyengm.pergrad.batch_norm.frozen import FrozenNorm
from pyengm.pergrad.conv_grad import ConvGrad
from pyengm.pergrad.per_example_grad import DenseGrad, OuterProductGrad, PerExampleGrad, row_squares

CACHED_ELEMENTS = 2**17  # of gradients at a time that stay in the level-two cache
Sums = tuple[Tensor, Tensor]  # S1, S2 per example: (n, C) each


class CorrectedGrad(PerExampleGrad):
    """own - sum_k sums_k means_k: own of a weight (O, *) or, by column, (I, O); sums (n, O), means (O or 1, I)."""

    def __init__(self, own: ConvGrad | OuterProductGrad, sums: Sequence[Tensor], means: Sequence[Tensor]):
        self.own, self.n, self.shape, self.sums, self.means = own, own.n, own.shape, sums, means

    def squares(self) -> Tensor:
        if self.own.one_by_one():
            step = max(1, CACHED_ELEMENTS // self.shape.numel())
            return torch.cat([row_squares(self.dense(slice(k, k + step))) for k in range(0, self.n, step)])
        total = self.own.squares()
        for k, (sums, mean) in enumerate(zip(self.sums, self.means, strict=True)):
            total -= 2 * (sums * self.own.row_dots(mean)).sum(1)
            for other, factor in [(k, 1), *((j, 2) for j in range(k))]:
                products = (mean * self.means[other]).sum(1)
                total += factor * (sums * self.sums[other] * products).sum(1)
        return total.clamp(min=0)

    def dense(self, examples: slice) -> Tensor:
        return self.own.dense(examples) - self._ranks([sums[examples] for sums in self.sums])

    def weighted(self, weights: Tensor) -> Tensor:
        sums = [(weights.to(sums) @ sums)[None] for sums in self.sums]
        return self.own.weighted(weights) - self._ranks(sums)[0]

    def _ranks(self, sums: Sequence[Tensor]) -> Tensor:
        rows = sum(s[:, :, None] * mean for s, mean in zip(sums, self.means, strict=True))  # (m, O, I)
        assert isinstance(rows, Tensor)  # there is at least one term
        return (rows.mT if isinstance(self.own, OuterProductGrad) else rows).reshape(-1, *self.shape)


def correct(
    own: dict[int, PerExampleGrad], norms: Sequence[FrozenNorm], sums: dict[int, Sums]
) -> dict[int, PerExampleGrad]:
    """The gradients of one layer's weights and bias, from those under constant statistics and the sums of the norms."""
    norms = [norm for norm in norms if norm.place in sums]
    if not norms:
        return own
    first = torch.stack([sums[norm.place][0] for norm in norms]).sum(0)
    found: dict[int, PerExampleGrad] = {}
    for slot, gradient in own.items():
        if isinstance(gradient, DenseGrad):  # a bias: the mean of its input, 1, is 1, and that of xhat is 0
            found[slot] = DenseGrad(gradient.values - first.view_as(gradient.values), gradient.shape)
        else:
            assert isinstance(gradient, (ConvGrad, OuterProductGrad))  # the weights of layers before a norm
            means = [gradient.mean_row(), *(gradient.mean_rows(norm.normalized()) for norm in norms)]
            found[slot] = CorrectedGrad(gradient, [first, *(sums[norm.place][1] for norm in norms)], means)
    return found
