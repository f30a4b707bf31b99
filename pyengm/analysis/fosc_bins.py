"""Accuracy and loss of adversarial examples in groups of equal FOSC."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.fosc_trajectory import fosc_trajectory
from pyengm.attacks import ThreatModel
from pyengm.errors import ConfigError
from pyengm.utils.figures import COLORS, axes_or_new, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FOSCBins:
    """Adversarial examples of PGD by their FOSC, in B groups.

    Attributes:
        edges: (B + 1,) bounds of the groups; the upper one belongs to the next group, but in the last.
        count: (B,) examples in each.
        accuracy: (B,) share on which the model is right, in [0, 1]; nan in an empty group.
        loss: (B,) mean cross-entropy; nan in an empty group.
        outside: Number of examples beyond the last edge.
    """

    edges: np.ndarray
    count: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    outside: int

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Accuracy and loss by FOSC, over bars of the counts."""
        ax = axes_or_new(ax)
        middles, widths = (self.edges[1:] + self.edges[:-1]) / 2, np.diff(self.edges)
        right = ax.twinx()
        share = self.count / max(1, self.count.max())
        ax.bar(middles, 100 * share, widths, color="0.88", label=f"examples, at most {self.count.max()}")
        ax.plot(middles, 100 * self.accuracy, "o-", color=COLORS[0], label="accuracy")
        right.plot(middles, self.loss, "s--", color=COLORS[1])
        ax.plot([], [], "s--", color=COLORS[1], label="loss (right)")
        ax.set(xlabel="FOSC", ylabel="accuracy (%)", ylim=(0, 100))
        right.set(ylabel="cross-entropy loss", ylim=(0, None))
        legend_above(ax)
        return ax


def fosc_bins(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    bins: int = 20,
    upper: float = 0.1,
    **options: Any,
) -> FOSCBins:
    """Accuracy and loss of adversarial examples by their FOSC.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threat: The threat model.
        bins: Number of groups B, of equal width.
        upper: The last edge; the first is 0.
        **options: Keyword arguments of `fosc_trajectory`.

    Returns:
        Counts, accuracies and losses.

    Raises:
        ConfigError: bins or upper is out of range, or for the reasons of `fosc_trajectory`.
        DataError: Images or labels do not fit.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Fig. 1a.
    """
    if bins < 1 or not upper > 0:
        raise ConfigError(f"expected 1 bin or more and an upper edge > 0, got {bins} and {upper}")
    last = fosc_trajectory(model, images, labels, threat, **options)
    values, loss, correct = last.fosc[-1], last.loss[-1], last.correct[-1]
    edges = np.linspace(0, upper, bins + 1)
    inside = values <= upper
    # Rounding may leave a FOSC a little below 0.
    group = np.clip(np.searchsorted(edges, values[inside], side="right") - 1, 0, bins - 1)
    count = np.bincount(group, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy, mean_loss = (np.bincount(group, v[inside], minlength=bins) / count for v in (correct, loss))
    return FOSCBins(edges, count, accuracy, mean_loss, int((~inside).sum()))
