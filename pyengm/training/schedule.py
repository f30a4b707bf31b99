"""Learning-rate schedules as factors of the highest rate, one per step."""

from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("piecewise", "cyclic", "nuat")


def piecewise(milestones: Sequence[int], steps_per_epoch: int) -> Callable[[int], float]:
    """1, divided by ten at the start of each of the epochs `milestones`."""
    return lambda step: 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in milestones)


def cyclic(total_steps: int, peak: float) -> Callable[[int], float]:
    """From near 0 up to 1 in a straight line for the share `peak` of the steps, then down to near 0; none is 0."""
    top = peak * total_steps
    return lambda step: min((step + 1) / max(top, 1), (total_steps - step) / max(total_steps - top, 1), 1.0)


def nuat(total_steps: int) -> Callable[[int], float]:
    """Of 100 equal parts: 40 up, down towards the 90th, held from the 80th, divided by ten at the 85th and the 90th."""
    part = total_steps / 100

    def factor(step: int) -> float:
        rise, fall = (step + 1) / (40 * part), (90 * part - min(step, 80 * part)) / (50 * part)
        return min(rise, fall, 1.0) * 0.1 ** ((step >= 85 * part) + (step >= 90 * part))

    return factor


def build_schedule(
    optimizer: Optimizer, kind: str, *, milestones: Sequence[int], peak: float, epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """The schedule of that name (`SCHEDULES`), to be stepped after every batch.

    milestones: epochs at which "piecewise" divides the rate by ten. peak: share of "cyclic" on its way up.
    """
    total = epochs * steps_per_epoch
    factors = {"cyclic": cyclic(total, peak), "nuat": nuat(total), "piecewise": piecewise(milestones, steps_per_epoch)}
    return LambdaLR(optimizer, factors[kind])
