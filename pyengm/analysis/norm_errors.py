"""How far estimated per-example gradient norms are from the exact ones, on the user's own model and batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.ops import clip_weights
from pyengm.pergrad import Estimator, exact_norms


@dataclass(frozen=True)
class NormErrors:
    """Of norms v_i against exact norms e_i. median: of |v_i / e_i - 1|. bias: median of v_i / e_i - 1. correlation:
    Pearson's, of v and e. update: ||sum_i (w_i - w*_i) g_i|| / ||sum_i w*_i g_i||, w clipped by v and w* by e."""

    median: float
    bias: float
    correlation: float
    update: float


def norm_errors(
    losses: Tensor,
    params: Iterable[Tensor],
    estimators: Mapping[str, Estimator] | None = None,
    alpha: float | None = None,
) -> dict[str, NormErrors]:
    """Errors of each way to estimate the norms ||dL_i / dparams||, by name.

    losses: (n,) with their graph, which is kept; takes n backward passes. estimators: by default one that is fitted
    on this batch for each of "frozen", "corrected" and "lowrank"; one that has seen earlier batches shows how its
    fit ages. alpha: of the clipping; the median of the exact norms unless given.
    Raises what `per_example_grad_norms` raises.
    """
    params = [p for p in params if p.requires_grad]
    if estimators is None:
        estimators = {kind: Estimator(kind) for kind in ("frozen", "corrected", "lowrank")}
    exact = exact_norms(losses, params)
    alpha = exact.median().item() if alpha is None else alpha
    right = clip_weights(exact, alpha)
    length = _length(losses, params, right)
    found = {}
    for name, estimator in estimators.items():
        norms = estimator.norms(losses, params, estimator.start(losses, params))
        relative = norms / exact - 1
        found[name] = NormErrors(
            relative.abs().median().item(),
            relative.median().item(),
            torch.corrcoef(torch.stack([norms, exact]))[0, 1].item(),
            _length(losses, params, clip_weights(norms, alpha) - right) / length,
        )
    return found


def _length(losses: Tensor, params: list[Tensor], weights: Tensor) -> float:
    """||sum_i weights_i g_i||."""
    grads = torch.autograd.grad(losses, params, weights.to(losses.dtype), retain_graph=True, allow_unused=True)
    return sum(g.double().square().sum().item() for g in grads if g is not None) ** 0.5
