"""Accelerate: the backward pass of per-example losses, in place of `accelerator.backward(loss)`."""

from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.any_optimizer import backward_for
from pyengm.pergrad import PerExampleStats

OWN_ENGINES = ("DEEPSPEED", "MEGATRON_LM")


def unwrap(optimizer: Any) -> Any:
    """The optimiser that `accelerator.prepare` was given: `unwrap(optimizer).statistics()`, `.alpha`."""
    return getattr(optimizer, "optimizer", optimizer)


def backward(
    accelerator: Any,
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    *,
    alpha: float | None = None,
    inputs: Tensor | None = None,
    accumulate: int | None = None,
) -> PerExampleStats | None:
    """Adds the gradient that the optimiser's step needs to .grad, scaled and divided as Accelerate does.

    `accelerator.accumulate(model)`, `optimizer.step()` and `optimizer.zero_grad()` stay as they are.

    Args:
        accelerator: The `accelerate.Accelerator`.
        optimizer: What `accelerator.prepare` returned for an optimiser of pyengm.optim or any other.
        losses: (n,) losses, one per example, with their graph, which is freed.
        alpha: Largest norm of an example's gradient under an optimiser that is not of pyengm.optim; None takes the
            mean gradient.
        inputs: As for `PerExampleSGD.backward`.
        accumulate: The number of calls that make up one step; None takes accelerator.gradient_accumulation_steps.

    Returns:
        The norms and weights, or None where all weights are 1 and no norms were needed.

    Raises:
        ConfigError: The accelerator hands the backward pass to an engine of its own, such as DeepSpeed; or alpha is
            given to an optimiser of pyengm.optim.
        Exception: What `PerExampleSGD.backward` or `clipped_backward` raise.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in OWN_ENGINES:
        raise ConfigError(f"{kind} takes backward passes of its own, without norms of examples: use MULTI_GPU (DDP)")
    return backward_for(
        unwrap(optimizer),
        losses,
        alpha=alpha,
        inputs=inputs,
        scaler=accelerator.scaler,
        accumulate=accelerator.gradient_accumulation_steps if accumulate is None else accumulate,
    )
