"""Lightning: a LightningModule whose training_step returns one loss per example."""

from typing import Any

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.any_optimizer import backward_for
from pyengm.pergrad import PerExampleStats


class PerExampleLosses:
    """A mixin: `class Net(PerExampleLosses, LightningModule)`.

    `training_step` returns the losses (n,), or {"loss": losses, ...}, and Lightning's automatic optimisation does the
    rest: processes (DDP), gradient accumulation, fp16, clipping of the whole gradient, checkpoints. In manual
    optimisation `self.manual_backward(losses)` does the same as in automatic optimisation.

    Attributes:
        alpha: Largest norm of an example's gradient under an optimiser that is not of pyengm.optim, such as
            torch.optim.AdamW; None takes the mean gradient.
        inputs: The model's inputs, requiring grad, which AENGM and NENGM weigh by: `training_step` sets it for the
            losses that it returns.
        example_stats: The norms and weights of the last batch, None where there are none.
    """

    alpha: float | None = None
    inputs: Tensor | None = None
    example_stats: PerExampleStats | None = None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook, called with the losses of a batch, divided and scaled as Lightning does it.

        Args:
            loss: (n,) losses.
            args: None; the arguments of Tensor.backward are not supported.
            kwargs: `optimizer` where there are several, `inputs` and `accumulate`, of `self.manual_backward`.

        Raises:
            ConfigError: There are several optimisers, or losses in float16 under a GradScaler.
            ValueError: There is one loss for the batch.
        """
        if args:
            raise ConfigError(f"expected manual_backward(losses) with keywords alone, got {len(args)} more arguments")
        module: Any = self
        optimizer = _single(kwargs.pop("optimizer", None) or module.optimizers())
        inputs = kwargs.pop("inputs", self.inputs)
        accumulate = module.trainer.accumulate_grad_batches if module.automatic_optimization else 1
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        losses = loss * accumulate if accumulate > 1 else loss
        if scaler is not None:
            if loss.dtype == torch.float16:
                raise ConfigError("the losses are in float16, where their scale is infinite: return losses.float()")
            losses = losses / scaler.get_scale()
        self.inputs = None
        self.example_stats = backward_for(
            optimizer,
            losses,
            alpha=self.alpha,
            inputs=inputs,
            scaler=scaler,
            accumulate=kwargs.pop("accumulate", accumulate),
            **kwargs,
        )


def _single(optimizers: Any) -> torch.optim.Optimizer:
    if isinstance(optimizers, list):
        raise ConfigError(
            f"there are {len(optimizers)} optimisers: call self.manual_backward(losses, optimizer=...) for one of them"
        )
    return optimizers
