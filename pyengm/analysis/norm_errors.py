"""Errors of estimated per-example gradient norms, measured on a model and batch of the user's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.ops import clip_weights
from pyengm.pergrad import NormEstimator, exact_norms, gathered, whole_params


@dataclass(frozen=True)
class NormErrors:
    """Errors of estimated norms v_i against exact norms e_i of n examples.

    Args:
        median: median of |v_i / e_i - 1|.
        bias: median of v_i / e_i - 1.
        correlation: Pearson's correlation of v and e.
        update: ||sum_i (w_i - w*_i) g_i|| / ||sum_i w*_i g_i||, with g_i the gradient of example i, w_i its weight
            from clipping by v, and w*_i the one from clipping by e.
    """

    median: float
    bias: float
    correlation: float
    update: float


def norm_errors(
    losses: Tensor,
    params: Iterable[Tensor],
    estimators: Mapping[str, NormEstimator] | None = None,
    alpha: float | None = None,
) -> dict[str, NormErrors]:
    """Errors of estimators of the norms ||dL_i / dparams||.

    Args:
        losses: losses L (n,) with their graph, which is kept. The exact norms take n backward passes.
        params: the parameters; those that require no gradient are ignored.
        estimators: estimators by name. By default one for each of "corrected" and "lowrank", fitted on this
            batch; one that was fitted on an earlier batch shows how its fit ages.
        alpha: threshold of the clipping, in units of the norms; by default the median of the exact norms.

    Returns:
        The errors by name of the estimator.

    Raises:
        UnsupportedOperationError, ValueError, NonFiniteError: for the reasons that `per_example_grad_norms` lists.
    """
    trained = [p for p in whole_params(list(params)) if p.requires_grad]
    if estimators is None:
        estimators = {mode: NormEstimator(mode) for mode in ("corrected", "lowrank")}
    with gathered(losses):
        return _errors(losses, trained, estimators, alpha)


def _errors(
    losses: Tensor, trained: list[Tensor], estimators: Mapping[str, NormEstimator], alpha: float | None
) -> dict[str, NormErrors]:
    exact = exact_norms(losses, trained)
    alpha = exact.median().item() if alpha is None else alpha
    exact_weights = clip_weights(exact, alpha)
    exact_update = _update_norm(losses, trained, exact_weights)
    errors = {}
    for name, estimator in estimators.items():
        norms = estimator.norms(losses, trained, estimator.prepare(losses, trained))
        relative = norms / exact - 1
        errors[name] = NormErrors(
            median=relative.abs().median().item(),
            bias=relative.median().item(),
            correlation=torch.corrcoef(torch.stack([norms, exact]))[0, 1].item(),
            update=_update_norm(losses, trained, clip_weights(norms, alpha) - exact_weights) / exact_update,
        )
    return errors


def _update_norm(losses: Tensor, params: list[Tensor], weights: Tensor) -> float:
    """||sum_i weights_i g_i||."""
    grads = torch.autograd.grad(losses, params, weights.to(losses.dtype), retain_graph=True, allow_unused=True)
    return sum(g.double().square().sum().item() for g in grads if g is not None) ** 0.5
