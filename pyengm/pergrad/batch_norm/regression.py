"""Fits estimated squared gradient norms to exact gradients of a few examples, and remembers fits as sums over examples.

Two regressions, each example weighted by 1 / ||g_i||^2:

1. In each layer the exact gradient along Q, A_i Q, is predicted as own W_1 + push W_2 (see projection.py), with W of
   2 rank by rank numbers, by ridge regression toward the last fit; the first one's is A_i Q = own + push.
2. In each group of parameters the exact squared norm is predicted as a factor times the estimate x, mixed with a share
   of the estimated total t, which takes over where the estimate says little: f x + b (s t - f x), f and s such that the
   sums over examples are right, b in [0, 1] by ridge regression toward 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.pergrad.batch_norm.projection import Bases, LayerSketch
from pyengm.pergrad.per_example_grad import on_device

RIDGE = 1e-2  # of W, relative to the sums' own diagonal
MIX_RIDGE = 0.3
KEEP = 0.5  # weight of the sums of fits before
Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums over processes


@dataclass(frozen=True)
class FitExamples:
    """m examples: exact and estimated squared norms by group (groups, m), the latter under constant statistics; of
    layers, by group, sketches and exact gradients along Q (m, O, rank)."""

    exact: Tensor
    squares: Tensor
    sketches: dict[int, LayerSketch]
    projected: dict[int, Tensor]

    @property
    def weights(self) -> Tensor:
        """(m,) so that every example counts the same; 0 for one without a gradient."""
        return self.exact.sum(0).reciprocal().nan_to_num(posinf=0)

    def of(self, some: Sequence[int]) -> "FitExamples":
        return FitExamples(
            self.exact[:, some],
            self.squares[:, some],
            {row: layer.of(some) for row, layer in self.sketches.items()},
            {row: along[some] for row, along in self.projected.items()},
        )


@dataclass(frozen=True)
class Fit:
    """What was fitted, and the sums that it came from; contiguous, as products round by the order in memory.

    maps: W of layers, (2 rank, rank). products: of layers, the sums of X^T X and X^T A Q, X = (own, push), side by
    side. moments: (8, groups), the sums of a, x, t, xx, xt, tt, xa and ta, a the exact squares.
    """

    maps: dict[int, Tensor]
    products: dict[int, Tensor]
    moments: Tensor

    def squares(self, squares: Tensor, sketches: dict[int, LayerSketch]) -> Tensor:
        """Estimated ||g_i||^2 (n,) from squares under constant statistics (groups, n) and sketches."""
        x = corrected(self.maps, squares, sketches)
        factor, share, mix = self._mixture()
        return ((1 - mix) * factor) @ x + (mix * share).sum() * x.sum(0)

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        a, x, t, xx, xt, tt, xa, ta = self.moments
        factor = torch.where(x > 0, a / x, 1)
        share = a / t.clamp(min=torch.finfo(t.dtype).tiny)
        gain = share * ta - share * factor * xt - factor * xa + factor.square() * xx
        size = share.square() * tt - 2 * share * factor * xt + factor.square() * xx
        mix = (gain / ((1 + MIX_RIDGE) * size)).clamp(0, 1).nan_to_num(nan=0.0)
        return factor, share, torch.where(x > 0, mix, 0)

    def rotated(self, old: Bases, new: Bases) -> "Fit":
        """The same fit in other bases; layers in several groups of inputs, whose bases turn apart, start anew."""
        maps, products = {}, {}
        for row, w in self.maps.items():
            if row not in new:
                continue
            if len(new[row]) == 1 and old[row].shape == new[row].shape:
                turn = (old[row][0].mT @ new[row][0]).to(w)
                both = torch.block_diag(turn, turn)
                maps[row] = both.mT @ w @ turn
                products[row] = both.mT @ self.products[row] @ torch.block_diag(both, turn)
            else:
                rank = new[row].shape[2]
                maps[row], products[row] = first_map(w.new_empty(0, 0, rank)), w.new_zeros(2 * rank, 3 * rank)
        return Fit(maps, products, self.moments)


def corrected(maps: dict[int, Tensor], squares: Tensor, sketches: dict[int, LayerSketch]) -> Tensor:
    """Squared norms by group with the parts along Q replaced by predictions, (groups, n)."""
    if not sketches:
        return squares
    before, after = [], []
    for row, layer in sketches.items():
        w = maps[row].to(layer.own) if row in maps else first_map(layer.own)
        own, push = layer.own.flatten(0, 1), layer.push.flatten(0, 1)
        along = torch.addmm(own @ w[: len(w) // 2], push, w[len(w) // 2 :])
        after.append(torch.linalg.vector_norm(along.view(len(layer.own), -1), dim=1))
        before.append(torch.linalg.vector_norm(layer.own.flatten(1), dim=1))
    rows = on_device(tuple(sketches), squares.device)
    change = torch.stack(after).square_() - torch.stack(before).square_()  # of all layers at once: each is small
    return squares.index_copy(0, rows, (squares.index_select(0, rows) + change).clamp_(min=0))


def first_map(own: Tensor) -> Tensor:
    """W of a layer that was never fitted, for gradients own (n, O, rank)."""
    one = torch.eye(own.shape[2], dtype=own.dtype, device=own.device)
    return torch.cat([one, one])


def fit(examples: FitExamples, last: Fit | None, keep: float, reduce: Reduce) -> Fit:
    """A fit to these examples and, with weight keep, to those of the fits before."""
    weights = examples.weights
    rows = list(examples.sketches)
    products = reduce([_products(examples.sketches[row], examples.projected[row], weights) for row in rows])
    maps, sums = {}, {}
    for row, new in zip(rows, products, strict=True):
        before = first_map(examples.sketches[row].own).to(new)
        if last is not None and row in last.maps:
            before, new = last.maps[row], new + keep * last.products[row]
        maps[row], sums[row] = _solved(new, before), new
    a, x = examples.exact * weights, corrected(maps, examples.squares, examples.sketches) * weights
    t = x.sum(0).expand_as(x)
    pairs = (a, x, t, x * x, x * t, t * t, x * a, t * a)
    (moments,) = reduce([torch.stack([values.sum(1) for values in pairs])])
    return Fit(maps, sums, moments if last is None else moments + keep * last.moments)


def _products(layer: LayerSketch, along: Tensor, weights: Tensor) -> Tensor:
    x = torch.cat([layer.own, layer.push], 2).double()
    both = torch.cat([x, along.double()], 2)
    return torch.einsum("ncp,n,ncq->pq", x, weights, both).contiguous()


def _solved(products: Tensor, before: Tensor) -> Tensor:
    x, y = products[:, : len(products)], products[:, len(products) :]
    ridge = RIDGE * x.diagonal()
    ridge = ridge + 1e-6 * ridge.mean() + torch.finfo(x.dtype).tiny  # where a direction has no gradient
    return (before + torch.linalg.solve(x + ridge.diag(), y - x @ before)).contiguous()


def norm_errors(fit: Fit, examples: FitExamples) -> Tensor:
    """|estimate / exact - 1| of the norms, without examples that have no gradient."""
    exact = examples.exact.sum(0)
    estimated = fit.squares(examples.squares, examples.sketches).clamp(min=0)
    return ((estimated / exact)[exact > 0].sqrt() - 1).abs()


def held_out_errors(examples: FitExamples, last: Fit | None, keep: float, reduce: Reduce) -> Tensor:
    """Errors of fits to one half of the examples on the other half, and the other way round."""
    m = examples.exact.shape[1]
    halves = [range(0, m, 2), range(1, m, 2)]
    errors = []
    for fitted, left in (halves, halves[::-1]):
        half = fit(examples.of(list(fitted)), last, keep, reduce)
        errors.append(norm_errors(half, examples.of(list(left))))
    return torch.cat(errors)
