"""Per-example losses for any optimiser: those of the family, and those of torch with clipped gradients."""

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.base import PerExampleSGD
from pyengm.pergrad import PerExampleStats, check_losses, clipped_backward


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
            mean gradient.
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
        return clipped_backward(losses, params, alpha, **options)
    check_losses(losses)
    if inputs is not None:
        inputs.grad = None  # .grad is that of this call alone
    loss = losses.mean() / accumulate
    loss = loss if scaler is None else scaler.scale(loss)
    loss.backward(inputs=params if inputs is None else [*params, inputs])
    return None


def check_alpha(optimizer: torch.optim.Optimizer, alpha: float | None) -> None:
    """Raises ConfigError where alpha is given to an optimiser that decides itself how it weighs the examples."""
    if alpha is not None and isinstance(optimizer, PerExampleSGD):
        raise ConfigError(
            f"alpha={alpha} is for other optimisers, such as torch.optim.AdamW: {type(optimizer).__name__} decides "
            "itself how it weighs the examples, by optimizer.alpha where it has one"
        )
