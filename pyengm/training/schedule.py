"""Learning-rate schedules as factors of the highest rate, one per step."""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("piecewise", "cyclic", "cosine", "constant", "nuat")


def piecewise(milestones: Sequence[float], steps_per_epoch: int, decay: float = 0.1) -> Callable[[int], float]:
    """1, times `decay` from each of the milestones on: epochs from 0, or parts of them, to the nearest step."""
    steps = [round(epoch * steps_per_epoch) for epoch in milestones]
    return lambda step: decay ** sum(step >= milestone for milestone in steps)


def cyclic(total_steps: int, peak: float) -> Callable[[int], float]:
    """From near 0 up to 1 in a straight line for the share `peak` of the steps, then down to near 0; none is 0."""
    top = peak * total_steps
    return lambda step: min((step + 1) / max(top, 1), (total_steps - step) / max(total_steps - top, 1), 1.0)


def cosine(total_steps: int) -> Callable[[int], float]:
    """From 1 down half a wave of the cosine, which would reach 0 after the last step (torch's CosineAnnealingLR)."""
    return lambda step: (1 + math.cos(math.pi * step / total_steps)) / 2


def nuat(total_steps: int) -> Callable[[int], float]:
    """Of 100 equal parts: 40 up, down towards the 90th, held from the 80th, divided by ten at the 85th and the 90th."""
    part = total_steps / 100

    def factor(step: int) -> float:
        rise, fall = (step + 1) / (40 * part), (90 * part - min(step, 80 * part)) / (50 * part)
        return min(rise, fall, 1.0) * 0.1 ** ((step >= 85 * part) + (step >= 90 * part))

    return factor


def warmed_up(factor: Callable[[int], float], steps: float) -> Callable[[int], float]:
    """The schedule `factor`, times what rises from near 0 to 1 in a straight line over the first `steps`; none is 0."""
    return lambda step: factor(step) * min((step + 1) / max(steps, 1), 1.0)


def in_proportion(milestones: Sequence[float], share: float) -> tuple[float, ...]:
    """The milestones of a run that is `share` times as long, to hundredths of an epoch."""
    return tuple(round(share * epoch, 2) for epoch in milestones)


def build_schedule(
    optimizer: Optimizer,
    kind: str,
    *,
    milestones: Sequence[float],
    peak: float,
    epochs: int,
    steps_per_epoch: int,
    decay: float = 0.1,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """The schedule of that name (`SCHEDULES`), to be stepped after every batch.

    milestones: epochs, or parts of them, at which "piecewise" multiplies the rate by `decay`. peak: share of "cyclic"
    on its way up. warmup_epochs: through which any of them rises from near 0, in addition.
    """
    total = epochs * steps_per_epoch
    factors = {
        "piecewise": piecewise(milestones, steps_per_epoch, decay),
        "cyclic": cyclic(total, peak),
        "cosine": cosine(total),
        "constant": lambda step: 1.0,
        "nuat": nuat(total),
    }
    return LambdaLR(optimizer, warmed_up(factors[kind], warmup_epochs * steps_per_epoch))
