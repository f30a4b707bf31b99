"""The distribution of FOSC of training examples, by epoch or model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.errors import ConfigError

POINTS = 200


@dataclass(frozen=True)
class FOSCDistribution:
    """Densities of FOSC.

    Args:
        names: (E,) what the samples belong to, such as epochs.
        samples: (E, n) FOSC of n adversarial examples.
        grid: (200,) values of FOSC.
        density: (E, 200) Gaussian kernel estimates with Scott's bandwidth, mirrored at 0, as FOSC is never negative.
    """

    names: tuple[str, ...]
    samples: np.ndarray
    grid: np.ndarray
    density: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """A line for each density."""
        (axes,) = make_axes(ax)
        for k, (name, values) in enumerate(zip(self.names, self.density, strict=True)):
            axes.plot(self.grid, values, color=COLORS[k % len(COLORS)], label=name)
        axes.legend(frameon=False)
        return finish(axes, "FOSC", "density")


def fosc_distribution(samples: Sequence[np.ndarray], names: Sequence[str]) -> FOSCDistribution:
    """Densities of FOSC values.

    Args:
        samples: (n,) for each epoch or model, such as the last row of `FOSCTrajectory.fosc`.
        names: Their names.

    Raises:
        ConfigError: There are none, or of different lengths.

    References:
        Wang et al. 2019, Fig. 2c to 2f, 3a, 3c and 5.
    """
    if not samples or len(samples) != len(names) or len({len(s) for s in samples}) != 1 or len(samples[0]) < 2:
        raise ConfigError("expected samples of one length, 2 or more, and a name for each")
    values = np.stack(samples).astype(float)
    grid = np.linspace(0, max(values.max() * 1.05, 1e-12), POINTS)
    return FOSCDistribution(tuple(names), values, grid, np.stack([_density(row, grid) for row in values]))


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    width = max(values.std(ddof=1) * len(values) ** -0.2, grid[-1] / (4 * POINTS))
    distances = (grid[:, None] - np.concatenate([values, -values])[None]) / width
    return np.exp(-(distances**2) / 2).sum(1) / (len(values) * width * np.sqrt(2 * np.pi))
