"""Accuracy and loss of adversarial examples by their FOSC."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class FOSCBins:
    """Adversarial examples by equal intervals of FOSC.

    Args:
        edges: (bins + 1,) the ends of the intervals.
        count: (bins,) examples in each; those outside of all intervals are in none.
        accuracy: (bins,) the share that the model is right on, NaN where there are none.
        loss: (bins,) the mean loss, NaN where there are none.
    """

    edges: np.ndarray
    count: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """Accuracy and loss by FOSC, on two axes."""
        first, second = make_axes(ax, 2)
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        width = 0.9 * np.diff(self.edges)
        first.bar(middles, 100 * self.accuracy, width, color=COLORS[0])
        second.bar(middles, self.loss, width, color=COLORS[1])
        finish(first, "FOSC", "accuracy in %")
        finish(second, "FOSC", "cross-entropy")
        return [first, second]


def fosc_bins(
    fosc: np.ndarray, loss: np.ndarray, correct: np.ndarray, *, bins: int = 20, low: float = 0.0, high: float = 0.1
) -> FOSCBins:
    """Sorts adversarial examples by FOSC, such as all iterates of `fosc_trajectory`.

    Args:
        fosc: Any shape.
        loss: The same shape.
        correct: The same shape, bool.
        bins: The number of intervals.
        low: The lower end of the first.
        high: The upper end of the last.

    Raises:
        ConfigError: Shapes differ, or the intervals are none.

    References:
        Wang et al. 2019, Fig. 1a.
    """
    if not fosc.shape == loss.shape == correct.shape:
        raise ConfigError(f"expected one shape, got {fosc.shape}, {loss.shape} and {correct.shape}")
    if bins < 1 or not low < high:
        raise ConfigError(f"expected bins >= 1 from low to a higher end, got {bins} from {low} to {high}")
    edges = np.linspace(low, high, bins + 1)
    count, _ = np.histogram(fosc, edges)
    right, _ = np.histogram(fosc, edges, weights=correct.astype(float))
    total, _ = np.histogram(fosc, edges, weights=loss)
    some = np.where(count > 0, count, np.nan)
    return FOSCBins(edges, count, right / some, total / some)
