"""Accuracy of every one of several models under every one of several attacks, and under those on surrogates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode, attacked, device_of, losses_at, to_array
from pyengm.analysis.parts import Arrays, Parts
from pyengm.attacks import Transfer
from pyengm.errors import ConfigError
from pyengm.utils.figures import HEAT, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CrossRobustness:
    """Accuracies of M models under A attacks on n images.

    Attributes:
        models: (M,) names.
        attacks: (A,) names; "NAME from SURROGATE" for adversarial examples of another model.
        accuracy: (M, A) shares in [0, 1].
        standard_error: (M, A) sqrt(p (1 - p) / n) of each share p.
        verdicts: (M, A, n) bool, whether a model is right under an attack.
    """

    models: np.ndarray
    attacks: np.ndarray
    accuracy: np.ndarray
    standard_error: np.ndarray
    verdicts: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A heat map of the accuracies in per cent."""
        rows, columns = self.accuracy.shape
        ax = axes_or_new(ax, 3.5 + 0.9 * columns, 2 + 0.5 * rows)
        shown = ax.imshow(100 * self.accuracy, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
        for (i, j), share in np.ndenumerate(self.accuracy):
            text = f"{100 * share:.1f}\n±{100 * self.standard_error[i, j]:.1f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if share < 0.6 else "black")
        ax.set_xticks(range(columns), self.attacks, rotation=30, ha="right")
        ax.set_yticks(range(rows), self.models)
        ax.set(xlabel="attack", ylabel="model")
        ax.figure.colorbar(shown, ax=ax, label="accuracy (%)")
        return ax


def cross_robustness(
    models: Mapping[str, nn.Module],
    attacks: Mapping[str, Attack | None],
    images: Tensor,
    labels: Tensor,
    *,
    surrogates: Mapping[str, nn.Module] | None = None,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> CrossRobustness:
    """Tries every attack on every model, and the adversarial examples of every surrogate.

    Args:
        models: Classifiers of images in [0, 1] by name.
        attacks: Attacks by name; None for the images themselves.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        surrogates: Further models by name, whose adversarial examples of every attack are tried on all models.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Accuracies and verdicts. The columns are the attacks on the model itself, then those from each surrogate.

    Raises:
        ConfigError: There is no model or no attack, or the mode is unknown.
        DataError: Images or labels do not fit.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Fig. 2a and b, Table 2.
    """
    if not models or not attacks:
        raise ConfigError(f"expected a model and an attack, or more; got {len(models)} and {len(attacks)}")
    columns: dict[str, Attack | None] = dict(attacks)
    for surrogate, net in (surrogates or {}).items():
        transfers = {f"{name} from {surrogate}": Transfer(one, net) for name, one in attacks.items() if one is not None}
        columns |= transfers
    batches, parts = Batches(images, labels, batch_size, seed), parts or Parts()
    rows = [
        [verdicts_under(model, attack, batches, bn, parts) for attack in columns.values()] for model in models.values()
    ]
    verdicts = np.stack([np.stack(row) for row in rows])
    accuracy = verdicts.mean(axis=2)
    error = np.sqrt(accuracy * (1 - accuracy) / verdicts.shape[2])
    return CrossRobustness(np.array(list(models)), np.array(list(columns)), accuracy, error, verdicts)


def verdicts_under(model: nn.Module, attack: Attack | None, batches: Batches, bn: str, parts: Parts) -> np.ndarray:
    """Whether a model is right on each image under an attack, (n,) bool."""

    def verdicts(number: int) -> Arrays:
        batch = batches.get(number, device_of(model))
        x = attacked(model, batch, attack)
        with analysis_mode(model, bn, batches.seed + number):
            return {"correct": to_array(losses_at(model, x, batch.y)[1])}

    return np.concatenate([part["correct"] for part in parts.run(len(batches), verdicts)])
