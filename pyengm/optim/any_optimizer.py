"""Per-example losses for any optimiser: those of the family, and those of torch with clipped gradients."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.base import PerExampleSGD
from pyengm.pergrad import NormEstimator, PerExampleStats, check_losses, clipped_backward

# what was fitted for the parameters of an optimiser that is not of pyengm.optim, as long as it lives
_fitted: WeakKeyDictionary[torch.optim.Optimizer, tuple[list[Tensor], NormEstimator]] = WeakKeyDictionary()


def backward_for(
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    *,
    alpha: float | None = None,
    inputs: Tensor | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
) -> PerExampleStats | None:
    """Adds the gradient that the optimiser's step needs to .grad of its parameters.

    Args:
        optimizer: One of pyengm.optim, which decides the weights itself, or any other.
        losses: (n,) losses, one per example, with their graph, which is freed.
        alpha: Largest norm of an example's gradient under an optimiser that is not of pyengm.optim; None takes the
            mean gradient. What is fitted to a model under batch norm in training mode is kept from call to call for
            the optimiser and its parameters, but it is not part of the optimiser's state_dict. Where torch.distributed
            runs, all processes must call equally often.
        inputs: As for `PerExampleSGD.backward`.
        scaler: As for `PerExampleSGD.backward`.
        accumulate: As for `PerExampleSGD.backward`.

    Returns:
        The norms and weights, or None where all weights are 1 and no norms were needed.

    Raises:
        ConfigError: alpha is given to an optimiser of pyengm.optim.
        Exception: What `PerExampleSGD.backward` or `clipped_backward` raise.
    """
    options = {"inputs": inputs, "scaler": scaler, "accumulate": accumulate}
    if isinstance(optimizer, PerExampleSGD):
        check_alpha(optimizer, alpha)
        return optimizer.backward(losses, **options)
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if alpha is not None:
        return clipped_backward(losses, params, alpha, norms=_estimator(optimizer, params), **options)
    check_losses(losses)
    if inputs is not None:
        inputs.grad = None  # .grad is that of this call alone
    loss = losses.mean() / accumulate
    loss = loss if scaler is None else scaler.scale(loss)
    loss.backward(inputs=params if inputs is None else [*params, inputs])
    return None


def _estimator(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> NormEstimator:
    """What was fitted before for the same parameters in the same order, or a new one."""
    known, estimator = _fitted.get(optimizer, ((), None))
    if estimator is None or len(known) != len(params) or any(p is not q for p, q in zip(known, params, strict=True)):
        estimator = NormEstimator()
        _fitted[optimizer] = params, estimator
    return estimator


def check_alpha(optimizer: torch.optim.Optimizer, alpha: float | None) -> None:
    """Raises ConfigError where alpha is given to an optimiser that decides itself how it weighs the examples."""
    if alpha is not None and isinstance(optimizer, PerExampleSGD):
        raise ConfigError(
            f"alpha={alpha} is for other optimisers, such as torch.optim.AdamW: {type(optimizer).__name__} decides "
            "itself how it weighs the examples, by optimizer.alpha where it has one"
        )
