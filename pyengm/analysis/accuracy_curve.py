"""Accuracy against one option of an attack, such as its radius or its number of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.attacks import attack_mode
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracies of n images under V attacks.

    Args:
        over: What changes, such as "eps".
        values: (V,) its values.
        correct: (V, n) bool, whether the model is right.
    """

    over: str
    values: np.ndarray
    correct: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """(V,) in [0, 1]."""
        return self.correct.mean(1)

    def plot(self, ax: Any = None) -> Any:
        """The accuracies with two standard errors."""
        (axes,) = make_axes(ax)
        p = self.accuracy
        error = 2 * np.sqrt(p * (1 - p) / self.correct.shape[1])
        axes.errorbar(self.values, 100 * p, yerr=100 * error, fmt="o-", color=COLORS[0], capsize=2)
        axes.set_ylim(0, 100)
        return finish(axes, self.over, "accuracy in %")


def accuracy_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable[[float], Any],
    values: Sequence[float],
    *,
    over: str = "eps",
    bn: str = "eval",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> AccuracyCurve:
    """Attacks images with one attack after another.

    Whether such a curve can be trusted, `pyengm.evaluation.trust_block` says: it falls with eps, more steps are not
    weaker, and so on.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Makes the attack for a value, such as lambda eps: PGD(eps, eps / 4, 10).
        values: The values, in the order of the curve.
        over: What they are, for the axis.
        bn: Mode of dropout and norm layers, "eval" or "batch_stats".
        batch_size: Images at a time.
        seed: Of random starts, the same for all values.

    Raises:
        ConfigError: There are no values.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Wang et al. 2019, Fig. 4a; Carlini et al. 2019, "On evaluating adversarial robustness", Sec. 5.
    """
    if not values:
        raise ConfigError("expected at least one value")
    rows = []
    for value in values:
        made, correct = attack(value), []
        for x, y, index in batches(images, labels, batch_size):
            x_adv = attacked(model, made, x, y, index, seed)
            with attack_mode(model, bn), torch.no_grad():
                correct.append((model(x_adv).argmax(1) == y).cpu())
        rows.append(torch.cat(correct))
    return AccuracyCurve(over, np.asarray(values, float), torch.stack(rows).numpy())
