"""The correlation of gradient norms with norms of input gradients, on which A-ENGM rests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyengm.analysis.batches import BATCH_SIZE
from pyengm.analysis.gradient_statistics import gradient_statistics
from pyengm.analysis.plotting import COLORS, finish, make_axes


@dataclass(frozen=True)
class NormCorrelation:
    """The line |g_i| = slope |dL_i/dx_i| + intercept through n examples.

    Args:
        pearson: Pearson's correlation of both norms, from -1 to 1.
        slope: gamma_1 of least squares.
        intercept: gamma_0.
        scatter: (n, 2) the norm of the input gradient and that of the gradient of each example.
    """

    pearson: float
    slope: float
    intercept: float
    scatter: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """The scatter plot with its line."""
        (axes,) = make_axes(ax)
        axes.scatter(*self.scatter.T, s=8, alpha=0.5, color=COLORS[0], linewidths=0)
        ends = np.array([0.0, self.scatter[:, 0].max()])
        line = self.slope * ends + self.intercept
        axes.plot(ends, line, color=COLORS[1], label=f"Pearson's r = {self.pearson:.3f}")
        axes.legend(frameon=False)
        return finish(axes, "norm of the input gradient", "norm of the gradient")


def norm_correlation(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Any = None,
    bn: str = "train",
    norms: str = "exact",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> NormCorrelation:
    """How well norms of input gradients tell norms of gradients; arguments and errors as for `gradient_statistics`.

    References:
        Dabouei et al. 2022, Sec. 2.5, Eq. 6, and Fig. 3a and 3b.
    """
    found = gradient_statistics(
        model, images, labels, attack=attack, bn=bn, norms=norms, batch_size=batch_size, seed=seed
    )
    return fit_line(found.input_norms, found.norms)


def fit_line(input_norms: np.ndarray, norms: np.ndarray) -> NormCorrelation:
    """The least squares line and the correlation of two lists of norms (n,)."""
    slope, intercept = np.polyfit(input_norms, norms, 1)
    pearson = float(np.corrcoef(input_norms, norms)[0, 1])
    return NormCorrelation(pearson, float(slope), float(intercept), np.stack([input_norms, norms], axis=1))
