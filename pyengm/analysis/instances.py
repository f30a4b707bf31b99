"""Training images by the norm of their input gradients: subsets, step sizes, and ATAS's ratios."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.errors import ConfigError

SUBSETS = 10


@dataclass(frozen=True)
class Instances:
    """What the log of instances says over E epochs about N training images.

    Args:
        epochs: (E,) their numbers.
        grad_norm: (E, N) L2 norms of the input gradients.
        step_size: (E, N) step sizes of the attack, in pixel units.
        delta: (E, N, 2) L2 and L-infinity norms of the perturbations.
        mean_norm: (N,) the mean gradient norm over the epochs, GN(x_i) of the paper.
        rank: (N,) the rank of an image by its mean norm, 0 for the smallest.
        ratio: (E,) mean of squares over the square of the mean of the gradient norms, which is 1 where all are equal:
            the gain of step sizes of one's own in Eq. 10.
    """

    epochs: np.ndarray
    grad_norm: np.ndarray
    step_size: np.ndarray
    delta: np.ndarray
    mean_norm: np.ndarray
    rank: np.ndarray
    ratio: np.ndarray

    def subset(self, first: int, last: int, of: int = SUBSETS) -> np.ndarray:
        """Positions of the images in the parts `first` to `last`, counted from 1, of `of` equal ones by mean norm.

        The paper's D_i^j is `subset(i, j)`. `np.savetxt(FILE, subset, "%d")` makes a file for --train-indices.

        Raises:
            ConfigError: The parts are out of range.
        """
        if not 1 <= first <= last <= of:
            raise ConfigError(f"expected 1 <= first <= last <= {of}, got {first} and {last}")
        n = len(self.rank)
        low, high = (first - 1) * n // of, last * n // of
        return np.flatnonzero((self.rank >= low) & (self.rank < high))

    def class_shares(self, labels: np.ndarray, of: int = SUBSETS) -> np.ndarray:
        """(of, classes) the share of each class in each part."""
        classes = int(labels.max()) + 1
        parts = [labels[self.subset(k + 1, k + 1, of)] for k in range(of)]
        return np.stack([np.bincount(part, minlength=classes) / max(len(part), 1) for part in parts])

    def plot(self, ax: Any = None) -> Any:
        """The histogram of mean norms, and step sizes of the smallest, a middle and the largest part by epoch."""
        first, second = make_axes(ax, 2)
        first.hist(self.mean_norm, bins=60, color=COLORS[0], alpha=0.8)
        finish(first, "mean norm of the input gradient", "images")
        for k, part in enumerate((1, 5, 10)):
            steps = self.step_size[:, self.subset(part, part)].mean(1)
            second.plot(self.epochs, 255 * steps, color=COLORS[k], label=f"$D_{{{part}}}^{{{part}}}$")
        second.legend(frameon=False)
        finish(second, "epoch", "mean step size, in 1/255")
        return [first, second]


def instances(log: Mapping[int, Mapping[str, np.ndarray]]) -> Instances:
    """Summarises a log of instances.

    Args:
        log: By epoch, arrays (N,) by name: "grad_norm", "step_size", "delta_l2" and "delta_linf", as
            RUN/instances/epoch-NNNN.npz has them.

    Raises:
        ConfigError: There are no epochs, or a name is missing.

    References:
        Huang et al. 2022, Sec. III, Eq. 10, Fig. 2, 3, 6, 10 and 11.
    """
    epochs = sorted(log)
    names = ("grad_norm", "step_size", "delta_l2", "delta_linf")
    if not epochs:
        raise ConfigError("the log of instances has no epochs; train with --instance-log")
    for name in names:
        if any(name not in log[epoch] for epoch in epochs):
            raise ConfigError(f"the log of instances has no {name}")
    grad, step, l2, linf = (np.stack([np.asarray(log[epoch][name], float) for epoch in epochs]) for name in names)
    mean = grad.mean(0)
    rank = np.empty(len(mean), int)
    rank[np.argsort(mean, kind="stable")] = np.arange(len(mean))
    ratio = (grad**2).mean(1) / grad.mean(1) ** 2
    return Instances(np.asarray(epochs), grad, step, np.stack([l2, linf], axis=2), mean, rank, ratio)
