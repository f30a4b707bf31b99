"""The eager training step, of any method with any optimiser that takes one batch per update."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyengm.data import Batch, Transform
from pyengm.methods import Method
from pyengm.ops import Key
from pyengm.optim import PerExampleSGD
from pyengm.optim.any_optimizer import backward_for, check_alpha
from pyengm.training.steps.base import AverageGradients, StepStats


def train_step(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    key: Key | None = None,
    transform: Transform | None = None,
    *,
    alpha: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    average: Callable[[], None] = lambda: None,
) -> StepStats:
    """Attacks, computes per-example losses and weights, and updates; several times where the method does so.

    Args:
        method: Computes the per-example losses of a batch.
        model: Maps images to logits (n, k), in training mode.
        optimizer: Has all parameters of the model: one of pyengm.optim, or any other, such as torch.optim.AdamW.
        x: (n, ...) images in [0, 1].
        y: (n,) int64 labels, or (n, k) probabilities of the classes (mixup, cutmix) for methods that take them.
        key: Selects the random numbers and identifies the images, as for `Method.passes`.
        transform: How augmentation made x of the stored images, as for `Method.passes`.
        alpha: Largest norm of an example's gradient under an optimiser that is not of pyengm.optim, see
            `pyengm.clipped_backward`; None takes the mean gradient. What is fitted under batch norm is kept for the
            optimiser from step to step, outside its state_dict; several processes must call equally often.
        scaler: Scales the losses of mixed precision in fp16.
        average: Called when the gradients of an update are complete, to make them the mean over several processes.

    Returns:
        The outputs of the method, whose graphs are freed, each with the norms and weights that the optimiser used.

    Raises:
        ConfigError: alpha is given to an optimiser of pyengm.optim.
        PyengmError: What the method and the optimiser raise. The parameters are then those of the last update.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> opt = pyengm.ENGM(model.parameters(), lr=0.1, alpha=5.0)
        >>> ((output, stats),) = pyengm.train_step(pyengm.methods.PGDAT(8 / 255), model, opt, x, y)
        >>> output.losses.shape
        torch.Size([4])
    """
    check_alpha(optimizer, alpha)
    step = EagerStep(method, model, optimizer, lambda images: average(), scaler, alpha)
    index = torch.arange(len(y)) if key is None else key.index
    return step([Batch(x, y, index, transform, len(y))], [key])


@dataclass
class EagerStep:
    """An attack, per-example losses and weights, and an update; several of them where the method does so.

    Args:
        method: As for `train_step`.
        model: As for `train_step`.
        optimizer: As for `train_step`.
        average: Averages the gradients over the processes.
        scaler: As for `train_step`.
        alpha: As for `train_step`.
    """

    method: Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AverageGradients
    scaler: torch.amp.GradScaler | None = None
    alpha: float | None = None
    batches_per_update = 1

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key | None]) -> StepStats:
        """One step on one batch; see `Step`."""
        (batch,), (key,) = batches, keys
        method, model, optimizer, scaler = self.method, self.model, self.optimizer, self.scaler
        stats: StepStats = []
        optimizer.zero_grad()
        for output in method.passes(model, batch.x, batch.y, key, batch.transform):
            inputs = output.x_adv if output.x_adv.requires_grad else None
            with ExitStack() as undo:
                undo.callback(output.undo or _nothing)
                weights = backward_for(optimizer, output.losses, alpha=self.alpha, inputs=inputs, scaler=scaler)
                stats.append((output, weights))
                if output.update:
                    self.average(len(batch.y))
                    if output.undo_before_step:
                        undo.close()
                    method.before_step(model, optimizer)
                    if isinstance(optimizer, PerExampleSGD):
                        optimizer.accept_grads()  # where another process alone had some
                    if scaler is None:
                        optimizer.step()
                    else:
                        scaler.step(optimizer)
                        scaler.update()
            if output.update:
                optimizer.zero_grad()
                torch.clear_autocast_cache()  # it may hold 16-bit casts of the weights before the update
        return stats


def _nothing() -> None:
    """What a method that did nothing to the parameters has to undo."""
