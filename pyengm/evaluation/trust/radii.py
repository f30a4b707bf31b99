"""Accuracy against the radius: it never rises, and no model withstands a ball that holds every image."""

from dataclasses import dataclass

from torch import Tensor

from pyengm.evaluation.trust.check import Check, is_stronger, percent
from pyengm.evaluation.trust.probe import Probe

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SPARED = 0.02  # share of the images that PGD-50 may leave at the widest radius


@dataclass(frozen=True)
class EpsCurve:
    """Images that a model classifies correctly under PGD, by radius.

    Args:
        eps: radii in pixel units, in ascending order; the first is 0, and within the last one of images of one size
            lies the grey image, which looks the same for every class.
        correct: (n,) bool for each radius.
    """

    eps: tuple[float, ...]
    correct: tuple[Tensor, ...]

    def as_json(self) -> dict[str, list[float]]:
        """Radii, and accuracies in [0, 1]."""
        return {"eps": list(self.eps), "accuracy": [part.double().mean().item() for part in self.correct]}


def eps_curve(probe: Probe) -> EpsCurve:
    """Runs PGD-20 at fractions and multiples of the radius, and PGD-50 at the widest."""
    widest = 0.5 if probe.threat.norm == "linf" else 0.5 * probe.x[0].numel() ** 0.5
    radii = [eps for factor in FACTORS if (eps := factor * probe.threat.eps) < widest]
    correct = [probe.pgd20 if eps == probe.threat.eps else _under_pgd(probe, 20, eps) for eps in radii]
    return EpsCurve((0.0, *radii, widest), (probe.natural, *correct, _under_pgd(probe, 50, widest)))


def _under_pgd(probe: Probe, steps: int, eps: float) -> Tensor:
    return probe.correct(probe.attacked(probe.pgd(steps, eps)))


def check_accuracy_falls(curve: EpsCurve) -> Check:
    """PGD in a larger ball fools the model at least as often: the larger ball holds the smaller one."""
    rises = [i for i in range(1, len(curve.eps)) if is_stronger(curve.correct[i - 1], curve.correct[i])]
    shown = ", ".join(f"{percent(part)} at {eps:.3g}" for eps, part in zip(curve.eps, curve.correct, strict=True))
    return Check("accuracy_falls", "accuracy falls as eps grows", not rises, shown)


def check_reaches_zero(curve: EpsCurve) -> Check:
    """PGD fools the model on (nearly) every image where eps is so large that any image can become grey."""
    left = curve.correct[-1]
    figure = f"{percent(left)} under PGD-50 at eps = {curve.eps[-1]:.3g}"
    return Check("reaches_zero", "accuracy reaches 0", bool(left.double().mean() <= SPARED), figure)
