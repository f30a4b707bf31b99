"""The linear correlation of gradient norms in the parameters and in the inputs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyengm.analysis.gradient_statistics import gradient_statistics
from pyengm.analysis.images import ANALYSIS_BN, Attack, Models, along_run
from pyengm.analysis.parts import Parts
from pyengm.utils.figures import COLORS, axes_or_new, epochs_on_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class NormCorrelation:
    """The line |dL_i/dtheta| = slope |dL_i/dx_i| + intercept, for E models in M = 2 modes, "eval" and "train".

    Attributes:
        epochs: (E,) epochs before each model.
        pearson: (E, M) Pearson's correlation; nan where one of the norms is the same for all examples.
        slope: (E, M) of the least-squares line.
        intercept: (E, M) of it.
        scatter: (E, M, n, 2) norms in the inputs, and in the parameters.
    """

    epochs: np.ndarray
    pearson: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    scatter: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The correlation by epoch; for one model, the norms with their lines."""
        ax = axes_or_new(ax)
        for mode, (name, marker) in enumerate(zip(ANALYSIS_BN, "os", strict=True)):
            color = COLORS[mode]
            if len(self.epochs) > 1:
                ax.plot(self.epochs, self.pearson[:, mode], f"{marker}-", color=color, label=f"{name} mode")
                continue
            x, y = self.scatter[0, mode].T
            label = f"{name} mode, correlation {self.pearson[0, mode]:.2f}"
            ax.plot(x, y, marker, color=color, markersize=3, alpha=0.6, label=label)
            ends = np.array([x.min(), x.max()])
            ax.plot(ends, self.slope[0, mode] * ends + self.intercept[0, mode], color=color)
        if len(self.epochs) > 1:
            ax.set(ylabel="Pearson's correlation of norms")
            epochs_on_x(ax)
        else:
            ax.set(xlabel="norm of the gradient in the input", ylabel="norm of the gradient in the parameters")
        ax.legend()
        return ax


def norm_correlation(
    models: Models,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None = None,
    norms: str = "exact",
    batch_size: int = 128,
    seed: int = 0,
    parts: Parts | None = None,
) -> NormCorrelation:
    """How well a line predicts the norm of an example's gradient from that of the gradient in its input.

    Args:
        models: One classifier of images in [0, 1], or several along a run.
        images: (n, ...) in [0, 1], two or more.
        labels: (n,) int64.
        attack: Whose examples the losses are of; None for the images themselves.
        norms: As for `gradient_statistics`.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Correlations and lines, with the model in evaluation and in training mode.

    Raises:
        ConfigError, DataError, NonFiniteError, UnsupportedOperationError: As for `gradient_statistics`.

    References:
        Dabouei et al. 2022, "Revisiting Outer Optimization in Adversarial Training", Fig. 3a and b, Eq. 6.
    """
    parts = parts or Parts()
    options = {"attack": attack, "norms": norms, "batch_size": batch_size, "seed": seed, "parts": parts}
    epochs, scatters = [], []
    for epoch, model in along_run(models):
        modes = [gradient_statistics(model, images, labels, bn=bn, **options) for bn in ANALYSIS_BN]
        scatters.append(np.stack([np.stack([one.input_norms[0], one.norms[0]], axis=-1) for one in modes]))
        epochs.append(epoch)
    scatter = np.stack(scatters)
    x, y = scatter[..., 0], scatter[..., 1]
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (dx * dy).sum(-1) / (dx**2).sum(-1)
        pearson = (dx * dy).sum(-1) / np.sqrt((dx**2).sum(-1) * (dy**2).sum(-1))
    return NormCorrelation(np.array(epochs), pearson, slope, y.mean(-1) - slope * x.mean(-1), scatter)
