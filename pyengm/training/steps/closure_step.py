"""The training step of optimisers that draw their own batches, those of the inner loop of Entropy-SGD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pyengm.data import Batch
from pyengm.methods import Method
from pyengm.ops import Key
from pyengm.optim import EntropySGD
from pyengm.training.steps.base import AverageGradients, StepStats


@dataclass
class ClosureStep:
    """One outer step whose inner loop takes each of its batches once.

    Args:
        method: Computes the per-example losses of a batch in a single pass.
        model: Maps images to logits (n, k), in training mode.
        optimizer: Has all parameters of the model.
        average: Averages the gradients of a batch over the processes.
    """

    method: Method
    model: nn.Module
    optimizer: EntropySGD
    average: AverageGradients

    @property
    def batches_per_update(self) -> int:
        """The number of batches that an outer step draws in the current epoch."""
        return self.optimizer.closures_per_step

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        """One outer step; see `Step`. With fewer batches than `batches_per_update` it has fewer inner steps."""
        stats: StepStats = []
        remaining = zip(batches, keys, strict=True)

        def closure() -> tuple[Tensor, Callable[[], None]]:
            batch, key = next(remaining)
            (output,) = self.method.passes(self.model, batch.x, batch.y, key, batch.transform)
            stats.append((output, None))

            def after_backward() -> None:
                self.average(len(batch.y))
                if output.undo is not None:
                    output.undo()

            return output.losses, after_backward

        inner_steps = len(batches) - self.optimizer.as_published if self.optimizer.current_inner_steps else 0
        self.optimizer.step(closure, inner_steps=inner_steps)
        return stats
