"""The loss surface of a classifier with two weights, and what Entropy-SGD makes of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyengm.errors import ConfigError
from pyengm.utils.figures import HEAT, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("linear", "swish")
CONSTRAINTS = ("nt", "l2", "linf")
SWISH_LOWEST = -1.2784645427610738  # where u / (1 + exp(-u)) is smallest: its derivative is 0


@dataclass(frozen=True)
class ToySurface:
    """Losses log(1 + exp(-y f(theta, x'))) of one image of two pixels, over theta in [-extent, extent]^2.

    Attributes:
        grid: (R,) values of both weights.
        loss: (R, R) at [theta_1, theta_2], with x' the worst image.
        entropy: (R, R) minus the local entropy, -log of the integral of exp(-loss - gamma / 2 |theta' - theta|^2).
    """

    grid: np.ndarray
    loss: np.ndarray
    entropy: np.ndarray

    def plot(self, ax: "Axes | None" = None, *, entropy: bool = False) -> "Axes":
        """Contours of the loss, or of minus the local entropy."""
        ax = axes_or_new(ax, 5, 4)
        filled = ax.contourf(self.grid, self.grid, (self.entropy if entropy else self.loss).T, 20, cmap=HEAT)
        ax.figure.colorbar(filled, ax=ax, label="minus local entropy" if entropy else "loss")
        ax.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal")
        return ax


def toy_surface(
    kind: str = "linear",
    constraint: str = "l2",
    *,
    x: tuple[float, float] = (1.0, 0.5),
    y: int = 1,
    eps: float = 0.6,
    gamma: float = 1.0,
    extent: float = 4.0,
    resolution: int = 161,
) -> ToySurface:
    """The adversarial loss of a binary classifier with two weights, with the worst image in closed form.

    The image enters through s = <theta, x'> alone, which the adversary moves by eps |theta|_2 (L2) or eps |theta|_1
    (L-infinity) at most. The linear model, f = s, is worst at one end; swish, f = s / (1 + exp(-s)), at an end or at
    its minimum.

    Args:
        kind: "linear" or "swish", the model.
        constraint: "nt" (no attack), "l2" or "linf".
        x: The image.
        y: Its label, -1 or 1.
        eps: Radius of the attack, in units of x.
        gamma: Of the local entropy, inverse square of its range.
        extent: Largest weight.
        resolution: Number R of values of each weight, odd, so that 0 is among them.

    Returns:
        The surface, and its local entropy by the fast Fourier transform on a larger grid of the same spacing.

    Raises:
        ConfigError: A name is unknown, a value is out of range, or the grid is too coarse for gamma.

    References:
        Kanai et al. 2023, "Relationship between Nonsmoothness in Adversarial Training, Constraints of Attacks, and
        Flatness in the Input Space", Figs. 2, 4 and 5, Sec. 3.1; Chaudhari et al. 2017, "Entropy-SGD", Eq. 3.
    """
    _check(kind, constraint, y, eps, gamma, extent, resolution)
    step = 2 * extent / (resolution - 1)
    margin = int(np.ceil(8 / np.sqrt(gamma) / step))  # the Gaussian is below 2e-14 beyond
    wide = step * np.arange(-(resolution // 2) - margin, resolution // 2 + margin + 1)
    losses = surface_at(wide[:, None], wide[None, :], kind, constraint, x=x, y=y, eps=eps)
    inside = slice(margin, margin + resolution)
    return ToySurface(wide[inside], losses[inside, inside], _minus_local_entropy(losses, step, gamma, margin))


def surface_at(
    theta1: np.ndarray,
    theta2: np.ndarray,
    kind: str,
    constraint: str,
    *,
    x: tuple[float, float],
    y: int,
    eps: float,
) -> np.ndarray:
    """The adversarial loss at weights; arguments as for `toy_surface`, which checks them."""
    s = theta1 * x[0] + theta2 * x[1]
    reach = {"nt": 0 * s, "l2": np.hypot(theta1, theta2), "linf": np.abs(theta1) + np.abs(theta2)}[constraint] * eps
    low, high = s - reach, s + reach
    if kind == "linear":
        margin = low if y > 0 else -high
    elif y > 0:
        margin = _swish(np.clip(SWISH_LOWEST, low, high))  # swish falls up to there and rises from there
    else:
        margin = -np.maximum(_swish(low), _swish(high))
    return np.logaddexp(0, -margin)


def _swish(u: np.ndarray) -> np.ndarray:
    return u * np.exp(-np.logaddexp(0, -u))


def _minus_local_entropy(losses: np.ndarray, step: float, gamma: float, margin: int) -> np.ndarray:
    """-log of the convolution of exp(-losses) with exp(-gamma / 2 |.|^2), inside of the margin."""
    offsets = step * np.arange(-margin, margin + 1)
    kernel = np.exp(-gamma / 2 * (offsets[:, None] ** 2 + offsets[None, :] ** 2)) * step**2
    size = len(losses) + len(kernel) - 1
    product = np.fft.rfft2(np.exp(-losses), (size, size)) * np.fft.rfft2(kernel, (size, size))
    whole = np.fft.irfft2(product, (size, size))
    inside = slice(2 * margin, 2 * margin + len(losses) - 2 * margin)
    return -np.log(whole[inside, inside])


def _check(kind: str, constraint: str, y: int, eps: float, gamma: float, extent: float, resolution: int) -> None:
    if kind not in KINDS or constraint not in CONSTRAINTS or y not in (-1, 1):
        raise ConfigError(
            f"got {kind!r}, {constraint!r} and y = {y}; known are {', '.join(KINDS)}; {', '.join(CONSTRAINTS)}; -1, 1"
        )
    if not (eps >= 0 and gamma > 0 and extent > 0) or resolution < 3 or resolution % 2 == 0:
        raise ConfigError(
            f"expected eps >= 0, gamma > 0, extent > 0 and an odd resolution >= 3, got {eps}, {gamma}, {extent} and "
            f"{resolution}"
        )
    step = 2 * extent / (resolution - 1)
    if step * np.sqrt(gamma) > 0.5:
        raise ConfigError(
            f"a spacing of {step:g} is too coarse for gamma = {gamma:g}: expected at most {0.5 / gamma**0.5:g}"
        )
