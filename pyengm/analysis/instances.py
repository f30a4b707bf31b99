"""What a log of all training images shows: gradients, steps and perturbations of single images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyengm.analysis.rank_correlation import spearman
from pyengm.errors import ConfigError, DataError
from pyengm.utils.figures import COLORS, axes_or_new, epochs_on_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = 10


@dataclass(frozen=True)
class Instances:
    """N training images by the gradient norms that a run logged of them in E epochs.

    Attributes:
        index: (N,) positions of the images in the training split.
        labels: (N,) int64.
        grad_norms: (N,) means over the epochs of the norms of the input gradients, GN(x_i).
        ranks: (N,) shares of the images with a smaller mean norm, in [0, 1).
        class_shares: (10, k) share of each class in the ten groups by rank, from small norms to large ones.
        step_sizes: (N,) step sizes in the last epoch, in pixel units.
        step_edges: (B + 1,) edges of their histogram.
        step_counts: (B,) images in each bin.
        deltas: (N, 2) L2 and L-infinity norms of the perturbations in the last epoch, in pixel units.
        ratios: (3,) of the largest norms G_i of the epochs: mean G_i^2 / (mean G_i)^2; its root, which is Eq. 10 with
            beta = 0; and Eq. 10 with the beta that was given.
        epoch_norms: (E, 10) mean norm of the input gradient in each epoch, by group.
        epoch_steps: (E, 10) mean step size in each epoch, by group, in pixel units.
        correlation: Spearman's correlation of norms and step sizes in the last epoch; nan for steps of one size.
    """

    index: np.ndarray
    labels: np.ndarray
    grad_norms: np.ndarray
    ranks: np.ndarray
    class_shares: np.ndarray
    step_sizes: np.ndarray
    step_edges: np.ndarray
    step_counts: np.ndarray
    deltas: np.ndarray
    ratios: np.ndarray
    epoch_norms: np.ndarray
    epoch_steps: np.ndarray
    correlation: float

    def subset(self, first: int, last: int) -> np.ndarray:
        """The positions in the training split of D_first^last, ascending: `--train-indices` takes a file of them.

        Args:
            first: i, the first tenth by rank, from 1.
            last: j, the last tenth, up to 10.

        Raises:
            ConfigError: They are no such tenths.
        """
        if not 1 <= first <= last <= GROUPS:
            raise ConfigError(f"expected tenths 1 <= first <= last <= {GROUPS}, got {first} and {last}")
        group = _groups(self.ranks)
        return np.sort(self.index[(group >= first - 1) & (group <= last - 1)])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Step size against gradient norm of every image; a histogram of the norms where all steps are of one size."""
        if np.isnan(self.correlation):
            return self.plot_norms(ax)
        ax = axes_or_new(ax)
        style = {"color": COLORS[0], "alpha": 0.4, "markersize": 3, "rasterized": True}
        label = f"training images, rank correlation {self.correlation:.2f}"
        ax.plot(self.grad_norms, 255 * self.step_sizes, ".", label=label, **style)
        ax.set(xlabel="mean norm of the input gradient", ylabel="step size (1/255)", ylim=(0, None))
        ax.legend()
        return ax

    def plot_norms(self, ax: "Axes | None" = None) -> "Axes":
        """Histogram of the gradient norms of the images, means over the epochs."""
        ax = axes_or_new(ax)
        label = f"mean square / squared mean of the largest: {self.ratios[0]:.2f}"
        ax.hist(self.grad_norms, bins=50, color=COLORS[0], label=label)
        ax.set(xlabel="mean norm of the input gradient", ylabel="number of training images")
        ax.legend()
        return ax

    def plot_groups(self, ax: "Axes | None" = None) -> "Axes":
        """Gradient norm and step size by epoch of the groups with the smallest, medium and largest norms."""
        ax = axes_or_new(ax)
        right = ax.twinx()
        epochs = np.arange(1, len(self.epoch_norms) + 1)
        for color, group in zip(COLORS, (0, 4, 9), strict=False):
            ax.plot(epochs, self.epoch_norms[:, group], "o-", color=color, label=f"group {group + 1}")
            right.plot(epochs, 255 * self.epoch_steps[:, group], "s--", color=color, markerfacecolor="none")
        ax.plot([], [], "s--", color="0.4", markerfacecolor="none", label="step size (right)")
        ax.set(ylabel="norm of the input gradient", ylim=(0, 1.3 * np.nanmax(self.epoch_norms) or None))
        right.set(ylabel="step size (1/255)", ylim=(0, 1.3 * 255 * np.nanmax(self.epoch_steps)))
        epochs_on_x(ax)
        ax.legend(ncols=2, fontsize="small", loc="upper left")
        return ax

    def plot_deltas(self, ax: "Axes | None" = None) -> "Axes":
        """Histogram of the L2 norms of the perturbations."""
        ax = axes_or_new(ax)
        ax.hist(self.deltas[:, 0], bins=50, color=COLORS[0])
        ax.set(xlabel="L2 norm of the perturbation", ylabel="number of training images")
        return ax


def instances(
    logs: Sequence[dict[str, np.ndarray]], labels: np.ndarray, *, beta: float = 0.5, bins: int = 30
) -> Instances:
    """Analyses the logs of single training images, as `pyengm train --instance-log` writes them.

    Args:
        logs: One for each of E epochs, in their order, with arrays (N,): index, grad_norm, step_size, delta_l2 and
            delta_linf. The images are the same in all of them.
        labels: Labels of the training split, at the positions that index gives.
        beta: Momentum of ATAS's average of squared norms, of Eq. 10.
        bins: Bins of the histogram of step sizes.

    Returns:
        Norms, ranks, groups, steps and ratios.

    Raises:
        DataError: There is no log, the logs are of different images, or a label is missing.
        ConfigError: beta or bins is out of range.

    References:
        Huang et al. 2022, "Fast Adversarial Training with Adaptive Step Size", Sec. III, Eq. 10, Figs. 2, 3, 6, 10
        and 11.
    """
    if not 0 <= beta < 1 or bins < 1:
        raise ConfigError(f"expected beta in [0, 1) and 1 bin or more, got {beta} and {bins}")
    _check(logs, labels)
    last, index = logs[-1], logs[-1]["index"]
    norms = np.stack([log["grad_norm"] for log in logs]).astype(float)
    own = np.asarray(labels)[index]
    mean = norms.mean(axis=0)
    ranks = np.searchsorted(np.sort(mean), mean, side="left") / len(mean)
    steps = last["step_size"].astype(float)
    counts, edges = np.histogram(steps, bins)
    groups = _groups(ranks)
    return Instances(
        index=index,
        labels=own,
        grad_norms=mean,
        ranks=ranks,
        class_shares=_class_shares(groups, own),
        step_sizes=steps,
        step_edges=edges,
        step_counts=counts,
        deltas=np.stack([last["delta_l2"], last["delta_linf"]], axis=1).astype(float),
        ratios=_ratios(norms.max(axis=0), beta),
        epoch_norms=np.stack([_group_means(groups, row) for row in norms]),
        epoch_steps=np.stack([_group_means(groups, log["step_size"].astype(float)) for log in logs]),
        correlation=spearman(norms[-1], steps),
    )


def _check(logs: Sequence[dict[str, np.ndarray]], labels: np.ndarray) -> None:
    if not logs:
        raise DataError("expected the log of one epoch or more: train with --instance-log")
    index = logs[-1]["index"]
    if any(not np.array_equal(log["index"], index) for log in logs):
        raise DataError("the logs are of different images: give logs of one run")
    if len(index) == 0 or index.max() >= len(labels):
        raise DataError(
            f"expected labels for 1 image or more, up to position {index.max(initial=0)}; got {len(labels)}"
        )


def _groups(ranks: np.ndarray) -> np.ndarray:
    """Tenths 0 to 9; a small summand, as ranks such as .3 are rounded down."""
    return np.minimum((ranks * GROUPS + 1e-9).astype(int), GROUPS - 1)


def _class_shares(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.zeros((GROUPS, int(labels.max()) + 1))
    np.add.at(counts, (groups, labels), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _group_means(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(10,) means; nan for a group without images."""
    sums, counts = (np.bincount(groups, weights, GROUPS) for weights in (values, None))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _ratios(largest: np.ndarray, beta: float) -> np.ndarray:
    mean = largest.mean()
    ratio = (largest**2).mean() / mean**2 if mean > 0 else np.nan
    return np.array([ratio, ratio**0.5, ratio**0.5 / (1 - beta) ** 0.25])
