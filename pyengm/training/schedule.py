"""Learning-rate schedules as factors of the highest rate, one per step."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pyengm.errors import ConfigError

T = TypeVar("T")
SCHEDULES = ("piecewise", "cyclic", "one_cycle", "cosine", "constant", "nuat")


def piecewise(milestones: Sequence[float], steps_per_epoch: int, decay: float = 0.1) -> Callable[[int], float]:
    """A factor that starts at 1 and is multiplied by `decay` at each milestone.

    Args:
        milestones: In epochs, counted from 0; fractions are rounded to the nearest step.
        steps_per_epoch: Number of batches of an epoch.
        decay: Factor at each milestone.

    Returns:
        The factor as a function of the step, counted from 0.
    """
    steps = [round(epoch * steps_per_epoch) for epoch in milestones]
    return lambda step: decay ** sum(step >= milestone for milestone in steps)


def cyclic(total_steps: int, pct_start: float) -> Callable[[int], float]:
    """A factor that rises linearly from near 0 to 1 and then falls linearly to near 0; no step has the factor 0.

    Args:
        total_steps: Number of steps of the run.
        pct_start: Share of the steps that the rise takes, in [0, 1] (as in torch's OneCycleLR).

    Returns:
        The factor as a function of the step, counted from 0.
    """
    top = pct_start * total_steps
    return lambda step: min((step + 1) / max(top, 1), (total_steps - step) / max(total_steps - top, 1), 1.0)


def one_cycle(total_steps: int, pct_start: float) -> Callable[[int], float]:
    """A factor that rises from 1/25 to 1 and falls to 1/250,000, along half cosine waves (torch's OneCycleLR).

    Args:
        total_steps: Number of steps of the run.
        pct_start: Share of the steps that the rise takes, in (0, 1).

    Returns:
        The factor as a function of the step, counted from 0.
    """
    first, last = 1 / 25, 1 / 250_000
    top, end = pct_start * total_steps - 1, total_steps - 1

    def factor(step: int) -> float:
        start, stop, share = (first, 1.0, step / top) if step < top else (1.0, last, (step - top) / (end - top))
        return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2

    return factor


def cosine(total_steps: int) -> Callable[[int], float]:
    """A factor that falls from 1 along half a cosine wave, to 0 after the last step (torch's CosineAnnealingLR)."""
    return lambda step: (1 + math.cos(math.pi * step / total_steps)) / 2


def nuat(total_steps: int) -> Callable[[int], float]:
    """The factor of NuAT's schedule, with the run divided into 100 equal parts.

    It rises for 40 parts, then falls linearly towards 0 at part 90; from part 80 it is constant, and it is divided by
    10 at part 85 and again at part 90.

    Args:
        total_steps: Number of steps of the run.

    Returns:
        The factor as a function of the step, counted from 0.
    """
    part = total_steps / 100

    def factor(step: int) -> float:
        rise, fall = (step + 1) / (40 * part), (90 * part - min(step, 80 * part)) / (50 * part)
        return min(rise, fall, 1.0) * 0.1 ** ((step >= 85 * part) + (step >= 90 * part))

    return factor


def with_warmup(factor: Callable[[int], float], steps: float) -> Callable[[int], float]:
    """The schedule `factor` with a linear warm-up from near 0 over the first `steps`; no step gets the factor 0."""
    return lambda step: factor(step) * min((step + 1) / max(steps, 1), 1.0)


def scale_milestones(milestones: Sequence[float], scale: float) -> tuple[float, ...]:
    """The milestones of a run that is `scale` times as long, rounded to hundredths of an epoch."""
    return tuple(round(scale * epoch, 2) for epoch in milestones)


def build_schedule(
    optimizer: Optimizer,
    name: str,
    *,
    milestones: Sequence[float] | None,
    pct_start: float | None,
    epochs: int,
    steps_per_epoch: int,
    decay: float = 0.1,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """Builds a schedule that is stepped after every batch.

    Args:
        optimizer: Its learning rate is the highest of the schedule.
        name: One of `SCHEDULES`.
        milestones: Epochs, or fractions of them, at which "piecewise" multiplies the rate by `decay`; None for others.
        pct_start: Share of the steps in which "cyclic" and "one_cycle" rise; None for other schedules.
        epochs: Number of epochs of the run.
        steps_per_epoch: Number of batches of an epoch.
        decay: Of "piecewise".
        warmup_epochs: Epochs in which any schedule also rises linearly from near 0.
    """
    total = epochs * steps_per_epoch
    factors: dict[str, Callable[[], Callable[[int], float]]] = {
        "piecewise": lambda: piecewise(_given("milestones", milestones), steps_per_epoch, decay),
        "cyclic": lambda: cyclic(total, _given("pct_start", pct_start)),
        "one_cycle": lambda: one_cycle(total, _given("pct_start", pct_start)),
        "cosine": lambda: cosine(total),
        "constant": lambda: lambda step: 1.0,
        "nuat": lambda: nuat(total),
    }
    return LambdaLR(optimizer, with_warmup(factors[name](), warmup_epochs * steps_per_epoch))


def _given(name: str, value: T | None) -> T:
    if value is None:
        raise ConfigError(f"{name} is None; expected a value for this schedule")
    return value
