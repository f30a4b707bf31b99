"""The distribution of FOSC, for a model or along a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyengm.analysis.fosc_trajectory import fosc_trajectory
from pyengm.analysis.images import Models, along_run
from pyengm.attacks import ThreatModel
from pyengm.utils.figures import COLORS, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 200


@dataclass(frozen=True)
class FOSCDistribution:
    """FOSC of the adversarial examples of PGD, for E models.

    Attributes:
        epochs: (E,) epochs before each model.
        samples: (E, n) FOSC.
        grid: (200,) values of FOSC.
        density: (E, 200) the estimated density at them, per unit of FOSC.
        loss: (E, n) cross-entropy.
        correct: (E, n) bool, whether the model is right.
    """

    epochs: np.ndarray
    samples: np.ndarray
    grid: np.ndarray
    density: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The densities, one line for each model."""
        ax = axes_or_new(ax)
        for row, epoch in enumerate(self.epochs):
            style = ("-", "--", ":", "-.")[row % 4]
            label = f"epoch {epoch}, mean {self.samples[row].mean():.3g}"
            ax.plot(self.grid, self.density[row], style, color=COLORS[row % len(COLORS)], label=label)
        ax.set(xlabel="FOSC", ylabel="density", ylim=(0, None), xlim=(0, self.grid[-1]))
        ax.legend()
        return ax


def fosc_distribution(
    models: Models, images: Tensor, labels: Tensor, threat: ThreatModel, **options: Any
) -> FOSCDistribution:
    """The distribution of FOSC after the last step of PGD.

    Args:
        models: One classifier of images in [0, 1], or several along a run.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threat: The threat model.
        **options: Keyword arguments of `fosc_trajectory`.

    Returns:
        Samples and densities.

    Raises:
        ConfigError: A value is out of range.
        DataError: Images or labels do not fit.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Figs. 2c to f, 3a, 3c and 5.
    """
    epochs, last = [], []
    for epoch, model in along_run(models):
        found = fosc_trajectory(model, images, labels, threat, **options)
        epochs.append(epoch)
        last.append((found.fosc[-1], found.loss[-1], found.correct[-1]))
    samples, loss, correct = (np.stack(rows) for rows in zip(*last, strict=True))
    grid = np.linspace(0, max(1.1 * float(np.quantile(samples, 0.99)), 1e-12), POINTS)
    return FOSCDistribution(np.array(epochs), samples, grid, density_of(samples, grid), loss, correct)


def density_of(samples: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Kernel density estimates of values >= 0, with Gaussians that are reflected at 0.

    Args:
        samples: (E, n).
        grid: (G,) values >= 0.

    Returns:
        (E, G). The width of the Gaussians is by Silverman's rule, .9 min(s, IQR / 1.34) n^(-1/5), at least a step of
        the grid.

    References:
        Silverman 1986, "Density Estimation for Statistics and Data Analysis", Eq. 3.31 and Sec. 2.10.
    """
    rows = []
    for values in samples:
        low, high = np.quantile(values, [0.25, 0.75])
        spread = min(values.std(ddof=min(1, len(values) - 1)), (high - low) / 1.34)
        width = max(0.9 * spread * len(values) ** -0.2, grid[1] - grid[0])
        near = (grid[:, None] - values) / width, (grid[:, None] + values) / width
        kernels = sum(np.exp(-(z**2) / 2) for z in near) / (width * np.sqrt(2 * np.pi))
        rows.append(kernels.mean(axis=1))
    return np.stack(rows)
