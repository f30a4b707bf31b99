"""Errors of the weights that A-ENGM gives to examples, against those of ENGM."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyengm.errors import ConfigError
from pyengm.ops import clip_weights, regression_weights
from pyengm.utils.figures import COLORS, axes_or_new, epochs_on_x, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class WeightErrors:
    """Errors of estimated weights v_i against w_i = min(alpha / |g_i|, 1), means over the examples of an epoch.

    Attributes:
        epochs: (E,) epochs.
        alphas: (A,) largest norms of an example's gradient.
        taus: (T,) steps from one fit of the line to the next.
        absolute: (E, A, T) means of |v_i - w_i|.
        relative: (E, A, T) means of |v_i - w_i| / w_i.
    """

    epochs: np.ndarray
    alphas: np.ndarray
    taus: np.ndarray
    absolute: np.ndarray
    relative: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Both errors in per cent: by epoch, or for one epoch by alpha."""
        ax = axes_or_new(ax, 7, 5)
        single = len(self.epochs) == 1
        for row, k in product(range(1 if single else len(self.alphas)), range(len(self.taus))):
            # By epoch, colours are those of alpha and markers those of tau; by alpha, both are those of tau.
            color, marker = COLORS[(k if single else row) % len(COLORS)], "osv^D*"[k % 6]
            tau = rf"$\tau$ = {self.taus[k]:g}"
            label = tau if single else rf"$\alpha$ = {self.alphas[row]:.3g}, {tau}"
            chosen = (0, slice(None), k) if single else (slice(None), row, k)
            x = self.alphas if single else self.epochs
            ax.plot(x, 100 * self.absolute[chosen], marker, color=color, linestyle="-", label=label)
            ax.plot(x, 100 * self.relative[chosen], marker, color=color, linestyle=":", markerfacecolor="none")
        ax.plot([], [], "-", color="0.4", label="absolute")
        ax.plot([], [], ":", color="0.4", label="relative")
        ax.set(xlabel=r"$\alpha$", ylabel="error of the weights (%)", ylim=(0, None))
        if not single:
            epochs_on_x(ax)
        legend_above(ax, 3)
        return ax


def weight_errors(
    norms: np.ndarray,
    input_norms: np.ndarray,
    alphas: Sequence[float],
    taus: Sequence[int],
    *,
    epochs: Sequence[int] | None = None,
    gamma_momentum: float = 0.7,
    batch_size: int = 128,
) -> WeightErrors:
    """Replays A-ENGM's average of lines on the norms of an epoch's batches, and compares its weights with exact ones.

    Args:
        norms: (E, n) norms of the gradients of examples, in epochs that follow each other, such as those of
            `gradient_statistics`.
        input_norms: (E, n) norms of the gradients in their inputs.
        alphas: (A,) largest norms of an example's gradient.
        taus: (T,) steps from one fit to the next; a batch is one step.
        epochs: (E,) their numbers; None for 0, ..., E - 1.
        gamma_momentum: Share of the old line in a new one.
        batch_size: Examples of a step, at most.

    Returns:
        The errors, absolute and relative.

    Raises:
        ConfigError: Norms, alphas or taus do not fit.

    References:
        Dabouei et al. 2022, "Revisiting Outer Optimization in Adversarial Training", Fig. 3c and d, Eqs. 6 and 7.
    """
    if norms.ndim != 2 or norms.shape != input_norms.shape or norms.size == 0:
        raise ConfigError(f"expected norms and input norms (E, n), got {norms.shape} and {input_norms.shape}")
    if not (min(alphas, default=0) > 0 and min(taus, default=0) >= 1 and batch_size >= 2):
        raise ConfigError(
            f"expected alphas > 0, taus of 1 or more and a batch_size of 2 or more, got {list(alphas)}, {list(taus)} "
            f"and {batch_size}"
        )
    absolute, relative = np.empty((2, len(norms), len(alphas), len(taus)))
    for (a, alpha), (t, tau) in product(enumerate(alphas), enumerate(taus)):
        weights = _replay(norms, input_norms, alpha, tau, gamma_momentum, batch_size)
        exact = clip_weights(torch.from_numpy(norms).double().flatten(), alpha).numpy().reshape(norms.shape)
        errors = np.abs(weights - exact)
        absolute[:, a, t], relative[:, a, t] = errors.mean(1), (errors / exact).mean(1)
    numbers = np.arange(len(norms)) if epochs is None else np.array(epochs)
    return WeightErrors(numbers, np.array(alphas, float), np.array(taus), absolute, relative)


def _replay(
    norms: np.ndarray, input_norms: np.ndarray, alpha: float, tau: int, gamma_momentum: float, batch_size: int
) -> np.ndarray:
    """The estimated weights (E, n)."""
    gammas, step, rows = torch.tensor([0.0, 1.0], dtype=torch.float64), 0, []
    for true, inputs in zip(norms, input_norms, strict=True):
        count, weights = -(-len(true) // batch_size), []
        for own, given in zip(np.array_split(true, count), np.array_split(inputs, count), strict=True):
            fit = torch.from_numpy(own).double() if step % tau == 0 else None
            given = torch.from_numpy(given).double()
            found, gammas = regression_weights(given, fit, gammas, alpha, keep=gamma_momentum)
            weights.append(found.numpy())
            step += 1
        rows.append(np.concatenate(weights))
    return np.stack(rows)
