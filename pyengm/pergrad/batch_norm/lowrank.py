"""Per-example gradient norms under batch norm in training mode from r + 1 backward passes, nearly exact for r = 16.

Let D_i be the corrected gradient of loss i and A_i the exact one. What D misses passes through the statistics, so it
lies close to the span of the statistics' own derivatives, U (n, 2 sum C). With V (n, r) the largest left singular
vectors of U, r ordinary backward passes of sum_i V_ik L_i give R_k = sum_i V_ik (A_i - D_i), and

    A_i ~ D_i + sum_k V_ik R_k,    |A_i|^2 ~ |D_i|^2 + 2 sum_k V_ik <D_i, R_k> + sum_kl V_ik V_il <R_k, R_l>.
"""

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.engine import PerExampleBackward
from pyengm.pergrad.hooks import disable_ddp_sink, full_precision
from pyengm.pergrad.per_example_grad import PerExampleGrad


def lowrank_squares(found: PerExampleBackward, rank: int) -> Tensor:
    """||A_i||^2 by group of parameters, (groups, n) float64. The graph is kept."""
    with full_precision(found.losses.device):
        return _lowrank_squares(found, rank)


def _lowrank_squares(found: PerExampleBackward, rank: int) -> Tensor:
    if not all(group.plain for group in found.usage.groups):
        raise UnsupportedOperationError("low-rank norms are for models whose weights are their parameters")
    kept: dict[int, PerExampleGrad] = {}
    sums: list[Tensor] = []
    total, _ = found.squares(kept=kept, corrected=True, sums=sums)
    u = torch.cat([s.double() for s in sums], 1)
    v = torch.linalg.eigh(u @ u.T).eigenvectors[:, -rank:]  # (n, r)
    edges = {k: found.edge(k) for k in kept}
    missing: dict[int, list[Tensor]] = {k: [] for k in kept}
    for column in v.T:
        with disable_ddp_sink(found.graph.nodes):
            exact = torch.autograd.grad(found.losses, list(edges.values()), column.to(found.losses), retain_graph=True)
        for k, a in zip(edges, exact, strict=True):
            missing[k].append(a - kept[k].weighted(column).to(a))
    for row, group in enumerate(found.usage.groups):
        (k,) = group.weights
        if k in kept:
            r = torch.stack(missing[k]).flatten(1).double()  # (r, P)
            dots = torch.cat([kept[k].dense(slice(i, i + 1)).flatten(1).double() @ r.T for i in range(len(v))])
            total[row] += 2 * (v * dots).sum(1) + torch.einsum("nk,kl,nl->n", v, r @ r.T, v)
    return total.clamp_(min=0)
