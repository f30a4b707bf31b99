"""The adversarial loss of a model with two weights and one example, and its local entropy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyengm.analysis.plotting import make_axes
from pyengm.errors import ConfigError

MODELS = ("linear", "swish")
THREATS = ("none", "l2", "linf")


@dataclass(frozen=True)
class ToySurface:
    """Losses log(1 + exp(-y f(x'))) over two weights, with x' the worst image of the ball.

    Args:
        grid: (R,) values of each weight.
        loss: (R, R); the first axis is that of the second weight.
        entropy: (R, R) the local entropy -log E exp(-loss(w + u)) over u ~ N(0, 1 / gamma), in units of the loss.
    """

    grid: np.ndarray
    loss: np.ndarray
    entropy: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """Contours of the loss and of its local entropy, side by side, at the same levels."""
        both = make_axes(ax, 2)
        levels = np.linspace(min(self.loss.min(), self.entropy.min()), self.loss.max(), 25)
        for axes, values, name in zip(both, (self.loss, self.entropy), ("loss", "local entropy"), strict=True):
            axes.contourf(self.grid, self.grid, values, levels=levels, cmap="viridis")
            axes.contour(self.grid, self.grid, values, levels=levels[::3], colors="white", linewidths=0.4)
            axes.set(xlabel="first weight", ylabel="second weight", title=name, aspect="equal")
        return both


def toy_surface(
    model: str = "linear",
    threat: str = "linf",
    *,
    eps: float = 0.6,
    x: tuple[float, float] = (1.0, 0.5),
    y: int = 1,
    extent: float = 3.0,
    resolution: int = 121,
    gamma: float = 10.0,
    steps: int = 200,
) -> ToySurface:
    """The surface on which the paper shows where adversarial losses are not smooth.

    For the linear model f(x) = w^T x the worst image is known: y f(x') = y w^T x - eps |w| in the dual norm, L2 or L1.
    With L2 the gradient jumps at the origin alone, with L-infinity on both axes. For f(x) = swish(w^T x) the worst
    value is found on a grid of w^T x', which the ball maps to an interval.

    Args:
        model: "linear" or "swish".
        threat: "none", "l2" or "linf".
        eps: Radius of the ball.
        x: The example.
        y: Its label, -1 or 1.
        extent: The largest weight.
        resolution: R.
        gamma: The scope of the local entropy; the deviation of u is gamma^-1/2.
        steps: Points of the interval, for "swish".

    Raises:
        ConfigError: A value is out of range.

    References:
        Kanai et al. 2023, Sec. 3 and 4, Fig. 2, 4 and 5, and Eq. 12 for the linear model.
    """
    if model not in MODELS or threat not in THREATS or y not in (-1, 1):
        raise ConfigError(f"expected a model of {MODELS}, a threat of {THREATS} and y of -1 or 1")
    if eps < 0 or extent <= 0 or resolution < 3 or gamma <= 0 or steps < 2:
        raise ConfigError("expected eps >= 0, extent > 0, resolution >= 3, gamma > 0 and steps >= 2")
    grid = np.linspace(-extent, extent, resolution)
    loss = _loss(model, threat, eps, x, y, grid, steps)
    spacing = grid[1] - grid[0]
    reach = int(np.ceil(5 * gamma**-0.5 / spacing))  # the surface goes on beyond the part that is shown
    wide = np.linspace(-extent - reach * spacing, extent + reach * spacing, resolution + 2 * reach)
    entropy = local_entropy(_loss(model, threat, eps, x, y, wide, steps), spacing, gamma)
    return ToySurface(grid, loss, entropy[reach:-reach, reach:-reach] if reach else entropy)


def local_entropy(loss: np.ndarray, spacing: float, gamma: float) -> np.ndarray:
    """-log of exp(-loss) (R, R) convolved with the normal density of variance 1 / gamma, by FFT; edges wrap."""
    n = len(loss)
    offsets = spacing * ((np.arange(n) + n // 2) % n - n // 2)
    kernel = np.exp(-gamma * offsets**2 / 2)
    kernel /= kernel.sum()
    transform = np.fft.fft(kernel)
    smooth = np.fft.ifft2(np.fft.fft2(np.exp(-loss)) * transform[:, None] * transform[None]).real
    return -np.log(np.maximum(smooth, np.finfo(float).tiny))


def _loss(
    model: str, threat: str, eps: float, x: tuple[float, float], y: int, grid: np.ndarray, steps: int
) -> np.ndarray:
    w1, w2 = np.meshgrid(grid, grid)
    inner = w1 * x[0] + w2 * x[1]
    reach = eps * {"none": 0 * w1, "l2": np.hypot(w1, w2), "linf": np.abs(w1) + np.abs(w2)}[threat]
    if model == "linear":
        return np.logaddexp(0, -(y * inner - reach))
    along = np.linspace(-1, 1, steps)
    values = inner[..., None] + reach[..., None] * along
    swish = values / (1 + np.exp(-values))
    return np.logaddexp(0, -(y * swish)).max(-1)
