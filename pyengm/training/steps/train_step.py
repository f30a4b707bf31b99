"""One training step of any method with any optimiser of the family."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyengm.data import Transform
from pyengm.methods.base import Method, StepOutput
from pyengm.ops import Key
from pyengm.optim import PerExampleSGD
from pyengm.pergrad import ExampleWeights

StepStats = list[tuple[StepOutput, ExampleWeights | None]]


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
    """Attack, per-example losses, the optimiser's weights, the update; several of these where the method has them.

    x: (n, ...) images in [0, 1]; y: (n,) int64; key, transform: as for `Method.passes`. scaler: of mixed precision.
    average: called when the gradients of an update are complete, to make them the mean over several processes.
    Returns the outcomes, whose graphs are gone, with the norms and weights that the optimiser used.
    Raises what the method and the optimiser raise; the parameters are then those of the last update.
    """
    used: StepStats = []
    optimizer.zero_grad()
    for outcome in method.passes(model, x, y, key, transform):
        inputs = outcome.x_adv if outcome.x_adv.requires_grad else None
        try:
            weights = optimizer.backward(outcome.losses, inputs=inputs, scaler=scaler)
            used.append((outcome, weights))
            if outcome.update:
                average()
                method.before_step(model, optimizer)
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
        finally:
            if outcome.undo is not None:
                outcome.undo()
        if outcome.update:
            optimizer.zero_grad()
            torch.clear_autocast_cache()  # a caller's autocast may hold the weights of before in 16 bits
    return used
