"""Learning-rate schedules as factors of the highest rate, one per step."""

from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("piecewise", "cyclic")
CYCLIC_PEAK = 0.4  # share of the run spent on the way up, as in the fast training of Wong et al. 2020


def piecewise(milestones: Sequence[int], steps_per_epoch: int) -> Callable[[int], float]:
    """1, divided by ten at the start of each of the epochs `milestones`."""
    return lambda step: 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in milestones)


def cyclic(total_steps: int) -> Callable[[int], float]:
    """From near 0 up to 1 in straight line, then down to near 0; no step has the factor 0."""
    peak = CYCLIC_PEAK * total_steps
    return lambda step: min((step + 1) / max(peak, 1), (total_steps - step) / max(total_steps - peak, 1), 1.0)


def build_schedule(
    optimizer: Optimizer, kind: str, milestones: Sequence[int], epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """The schedule "piecewise" or "cyclic", to be stepped after every optimiser step."""
    if kind == "piecewise":
        return LambdaLR(optimizer, piecewise(milestones, steps_per_epoch))
    return LambdaLR(optimizer, cyclic(epochs * steps_per_epoch))
