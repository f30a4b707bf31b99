"""Accuracy under PGD by radius, steps, step size or restarts, with checks for masked gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.cross_robustness import verdicts_under
from pyengm.analysis.images import Attack, Batches, analysis_mode, device_of, to_array
from pyengm.analysis.parts import Arrays, Parts
from pyengm.attacks import FGSM, PGD, AutoAttack, ThreatModel, Transfer
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError
from pyengm.utils.figures import COLORS, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVER = ("eps", "steps", "step_size", "restarts")
Check = tuple[str, float, float, bool]
"""A name, two shares, and whether the check passed."""
LARGE = {"linf": 0.5, "l2": 16.0}  # radii at which a grey image, or one near it, is within reach


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy under PGD at V values of one of its options.

    Attributes:
        over: The option.
        values: (V,) ascending; radii and step sizes in pixel units.
        accuracy: (V,) shares in [0, 1].
        standard_error: (V,) sqrt(p (1 - p) / n) of each share p.
        verdicts: (V, n) bool, whether the model is right.
        check_names: (C,) names of the checks for masked gradients.
        check_passed: (C,) bool.
        check_values: (C, 2) the shares that a check compares: the first may not be larger than the second by more than
            two standard errors of the difference.
    """

    over: str
    values: np.ndarray
    accuracy: np.ndarray
    standard_error: np.ndarray
    verdicts: np.ndarray
    check_names: np.ndarray
    check_passed: np.ndarray
    check_values: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Accuracy by value with standard errors; failed checks are in the title."""
        ax = axes_or_new(ax)
        pixels = self.over in ("eps", "step_size")
        values = 255 * self.values if pixels else self.values
        ax.errorbar(values, 100 * self.accuracy, 100 * self.standard_error, fmt="o-", color=COLORS[0], capsize=3)
        unit = " (1/255)" if pixels else ""
        ax.set(xlabel=f"{self.over.replace('_', ' ')} of PGD{unit}", ylabel="accuracy (%)", ylim=(0, 100))
        failed = self.check_names[~self.check_passed]
        if len(self.check_names):
            count = f"{int(self.check_passed.sum())} of {len(self.check_passed)} checks passed"
            ax.set_title("\n".join([count, *(f"failed: {name}" for name in failed)]), fontsize="small")
        return ax


def accuracy_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    values: Sequence[float],
    *,
    over: str = "eps",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "ce",
    checks: bool = True,
    surrogate: nn.Module | None = None,
    square_examples: int = 0,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> AccuracyCurve:
    """Accuracy under PGD at several values of one option, the others as given.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threat: The threat model; its radius is that of the options other than eps, and of the checks.
        values: (V,) of the option, ascending.
        over: "eps", "steps", "step_size" or "restarts".
        steps: Of PGD.
        step_size: In pixel units; None for 2.5 eps / steps, which follows eps and steps.
        restarts: Of PGD.
        loss: Of PGD, see `pyengm.attacks.PGD`.
        checks: Whether to look for masked gradients: the accuracy falls along the curve, is 0 at a large radius, and is
            not lower under weaker attacks; noise does little; few images have no gradient.
        surrogate: Another model, whose adversarial examples take part in the checks.
        square_examples: Images for Square attack, which takes part in the checks; 0 for none.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Accuracies and checks.

    Raises:
        ConfigError, DataError: Values, images or labels do not fit.

    References:
        Wang et al. 2019, Fig. 4a; Athalye et al. 2018, "Obfuscated Gradients", Sec. 3.1; Carlini et al. 2019, Sec. 5.
    """
    if over not in OVER or not values or sorted(set(values)) != list(values):
        raise ConfigError(f"expected over in {', '.join(OVER)} and ascending values, got {over!r} and {list(values)}")
    base = {"eps": threat.eps, "steps": steps, "step_size": step_size, "restarts": restarts}
    batches, parts = Batches(images, labels, batch_size, seed), parts or Parts()
    attacks = [_pgd(threat.norm, loss, bn, **{**base, over: value}) for value in values]
    verdicts = np.stack([verdicts_under(model, attack, batches, bn, parts) for attack in attacks])
    look = _Checks(model, batches, threat, _pgd(threat.norm, loss, bn, **base), bn, parts)
    found = [*look.falls(verdicts, over), *look.all(surrogate, square_examples)] if checks else []
    return _curve(over, values, verdicts, found)


def _curve(over: str, values: Sequence[float], verdicts: np.ndarray, checks: Sequence[Check]) -> AccuracyCurve:
    accuracy = verdicts.mean(axis=1)
    error = np.sqrt(accuracy * (1 - accuracy) / verdicts.shape[1])
    names = np.array([check[0] for check in checks], str)
    compared = np.array([check[1:3] for check in checks], float).reshape(-1, 2)
    passed = np.array([check[3] for check in checks], bool)
    return AccuracyCurve(over, np.array(values, float), accuracy, error, verdicts, names, passed, compared)


def _pgd(norm: str, loss: str, bn: str, *, eps: float, steps: float, step_size: float | None, restarts: float) -> PGD:
    size = 2.5 * eps / steps if step_size is None else step_size
    mode = "batch_stats" if bn == "train" else "eval"
    return PGD(eps, size, int(steps), norm=norm, loss=loss, restarts=int(restarts), bn=mode)


class _Checks:
    """Checks for masked gradients of one model on some images.

    Args:
        pgd: The attack to be trusted.
    """

    def __init__(self, model: nn.Module, batches: Batches, threat: ThreatModel, pgd: PGD, bn: str, parts: Parts):
        self.model, self.batches, self.threat, self.bn, self.parts, self.pgd = model, batches, threat, bn, parts, pgd

    def falls(self, verdicts: np.ndarray, over: str) -> list[Check]:
        """The accuracy never rises along the curve; the values are those of the largest rise."""
        # A larger radius, more steps and more restarts never hurt an attack; a larger step may.
        if len(verdicts) < 2 or over == "step_size":
            return []
        pairs = list(zip(verdicts[1:], verdicts[:-1], strict=True))
        rises = [_not_above(f"accuracy does not rise with {over}", *pair) for pair in pairs]
        return [max(rises, key=lambda row: (not row[3], row[1] - row[2]))]

    def all(self, surrogate: nn.Module | None, square_examples: int) -> list[Check]:
        """All checks at one radius, and at a large one."""
        threat, mode, pgd = self.threat, self.pgd.bn, self._under(self.pgd)
        few = self._under(PGD(threat.eps, threat.eps, 1, norm=threat.norm, bn=mode))
        fgsm = self._under(FGSM(threat.eps, norm=threat.norm, bn=mode))
        large = self._under(self._large())
        noise = self._under(PGD(threat.eps, 0.0, 1, norm=threat.norm, bn=mode))
        clean = self._under(None)
        rows = [
            _not_above("PGD is not weaker than one step from a random start", pgd, few),
            _not_above("PGD is not weaker than FGSM", pgd, fgsm),
            _not_above("PGD is not weaker than noise", pgd, noise),
            ("accuracy is at most 1 % at a large radius", float(large.mean()), 0.01, bool(large.mean() <= 0.01)),
        ]
        lost = float((clean & ~noise).mean())
        rows.append(("noise changes at most 5 % of right answers", lost, 0.05, lost <= 0.05))
        zero = self._zero_gradients()
        rows.append(("at most 1 % of images have a zero gradient", zero, 0.01, zero <= 0.01))
        if surrogate is not None:
            transfer = self._under(Transfer(self.pgd, surrogate))
            rows.append(_not_above("PGD is not weaker than examples of the surrogate", pgd, transfer))
        if square_examples:
            rows.append(self._square(pgd, square_examples))
        return rows

    def _under(self, attack: Attack | None) -> np.ndarray:
        return verdicts_under(self.model, attack, self.batches, self.bn, self.parts)

    def _large(self) -> PGD:
        eps = LARGE[self.threat.norm]
        return PGD(eps, eps / 10, 50, norm=self.threat.norm, bn=self.pgd.bn)

    def _square(self, pgd: np.ndarray, count: int) -> Check:
        some = Batches(self.batches.images[:count], self.batches.labels[:count], 250, self.batches.seed)
        square = AutoAttack(self.threat.eps, norm=self.threat.norm, attacks=("square",), seed=self.batches.seed)
        found = verdicts_under(self.model, square, some, self.bn, self.parts)
        return _not_above("PGD is not weaker than Square", pgd[: len(found)], found)

    def _zero_gradients(self) -> float:
        """Share of images whose loss has no gradient in the image."""
        model, batches = self.model, self.batches

        def zero(number: int) -> Arrays:
            batch = batches.get(number, device_of(model))
            with analysis_mode(model, self.bn, batches.seed + number):
                grad, _, _ = input_grad(model, batch.x, cross_entropy, batch.y)
            return {"zero": to_array((grad.flatten(1) == 0).all(dim=1))}

        return float(np.concatenate([part["zero"] for part in self.parts.run(len(batches), zero)]).mean())


def _not_above(name: str, strong: np.ndarray, weak: np.ndarray) -> Check:
    """The accuracy under the strong attack is at most that under the weak one, up to chance: verdicts (n,) each."""
    difference = strong.astype(float) - weak.astype(float)
    error = difference.std() / np.sqrt(len(difference))
    return name, float(strong.mean()), float(weak.mean()), bool(difference.mean() <= 2 * error)
