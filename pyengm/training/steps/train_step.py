"""The eager training step, of any method with any optimiser that takes one batch per update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.data import Batch, Transform
from pyengm.methods import Method
from pyengm.ops import Key
from pyengm.optim import PerExampleSGD
from pyengm.training.steps.base import AverageGradients, StepStats


def train_step(
    method: Method,
    model: nn.Module,
    optimizer: PerExampleSGD,
    x: Tensor,
    y: Tensor,
    key: Key | None = None,
    transform: Transform | None = None,
    *,
    scaler: torch.amp.GradScaler | None = None,
    average: Callable[[], None] = lambda: None,
) -> StepStats:
    """Attacks, computes per-example losses and weights, and updates; several times where the method does so.

    Args:
        method: Computes the per-example losses of a batch.
        model: Maps images to logits (n, k), in training mode.
        optimizer: Has all parameters of the model.
        x: (n, ...) images in [0, 1].
        y: (n,) int64 labels.
        key: Selects the random numbers and identifies the images, as for `Method.passes`.
        transform: How augmentation made x of the stored images, as for `Method.passes`.
        scaler: Scales the losses of mixed precision in fp16.
        average: Called when the gradients of an update are complete, to make them the mean over several processes.

    Returns:
        The outputs of the method, whose graphs are freed, each with the norms and weights that the optimiser used.

    Raises:
        PyengmError: What the method and the optimiser raise. The parameters are then those of the last update.
    """
    stats: StepStats = []
    optimizer.zero_grad()
    for output in method.passes(model, x, y, key, transform):
        inputs = output.x_adv if output.x_adv.requires_grad else None
        try:
            weights = optimizer.backward(output.losses, inputs=inputs, scaler=scaler)
            stats.append((output, weights))
            if output.update:
                average()
                method.before_step(model, optimizer)
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
        finally:
            if output.undo is not None:
                output.undo()
        if output.update:
            optimizer.zero_grad()
            torch.clear_autocast_cache()  # a caller's autocast may hold 16-bit casts of the weights before the update
    return stats


@dataclass
class EagerStep:
    """`train_step` for the batches of a run.

    Args:
        method: As for `train_step`.
        model: As for `train_step`.
        optimizer: As for `train_step`.
        average: Averages the gradients over the processes.
        scaler: As for `train_step`.
    """

    method: Method
    model: nn.Module
    optimizer: PerExampleSGD
    average: AverageGradients
    scaler: torch.amp.GradScaler | None = None
    batches_per_update = 1

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        """One step on one batch; see `Step`."""
        (batch,), (key,) = batches, keys
        average = partial(self.average, len(batch.y))
        images = batch.x, batch.y, key, batch.transform
        return train_step(self.method, self.model, self.optimizer, *images, scaler=self.scaler, average=average)
