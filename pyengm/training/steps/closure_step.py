"""Loader as the optimiser takes them: one per update, or those of the inner loop of Entropy-SGD."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from torch import Tensor, nn

from pyengm.data import Batch
from pyengm.methods import Method
from pyengm.ops import Key
from pyengm.optim import EntropySGD, PerExampleSGD
from pyengm.training.steps.train_step import StepStats


def takes_closures(optimizer: PerExampleSGD) -> bool:
    """Whether the optimiser draws its own batches: `step(closure)`."""
    return isinstance(optimizer, EntropySGD)


def groups(batches: Iterable[Batch], optimizer: PerExampleSGD) -> Iterator[list[Batch]]:
    """The batches of an epoch, as many at a time as an update takes; the last group may be short."""
    batches = iter(batches)
    size = optimizer.closures_per_step if takes_closures(optimizer) else 1
    while group := list(islice(batches, size)):
        yield group


def closure_step(
    method: Method,
    model: nn.Module,
    optimizer: EntropySGD,
    group: Sequence[Batch],
    keys: Sequence[Key],
    average: Callable[[int], None],
) -> StepStats:
    """One outer step whose inner loop takes each batch of the group once.

    average: called with the size of a batch when its gradients are complete, as for `train_step`.
    """
    used: StepStats = []
    waiting = zip(group, keys, strict=True)

    def closure() -> tuple[Tensor, Callable[[], None]]:
        batch, key = next(waiting)
        (outcome,) = method.passes(model, batch.x, batch.y, key, batch.transform)
        used.append((outcome, None))

        def after_backward() -> None:
            average(len(batch.y))
            if outcome.undo is not None:
                outcome.undo()

        return outcome.losses, after_backward

    inner_steps = len(group) - optimizer.as_published if optimizer.current_inner_steps else 0
    optimizer.step(closure, inner_steps=inner_steps)  # the last group of an epoch may be short
    return used
