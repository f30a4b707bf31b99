"""Metrics along the training, with bands over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pyengm.comparison.entries import Entry
from pyengm.comparison.times import epoch_seconds
from pyengm.utils.figures import COLORS, epochs_on_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", ":", "-.")
UNITS = (("hours", 3600.0, 2 * 3600.0), ("minutes", 60.0, 120.0), ("seconds", 1.0, 0.0))
"""Units of time: the name, its seconds, and from how many seconds on it is taken."""


@dataclass(frozen=True)
class EntryCurves:
    """Metrics of the S runs of an entry after each of E epochs; nan where there is none.

    Accuracies are shares in [0, 1]. The keys are those of metrics.jsonl, see `pyengm.training.Logger`.

    Attributes:
        seeds: (S,) of the runs.
        epochs: (E,) epochs that are done, from 1. E is that of the longest run.
        seconds: (S, E) time of training so far, without evaluations.
        robust: (S, E) accuracy on the held-out images under PGD-20.
        natural: (S, E) accuracy on the held-out images as they are.
        train_pgd: (S, E) accuracy on some training images under the attack of the option train_attack.
        train_robust: (S, E) accuracy on the attacked training images.
        robust_loss: (S, E) mean cross-entropy on the held-out images under PGD-20.
        loss: (S, E) mean loss on the attacked training images.
    """

    seeds: np.ndarray
    epochs: np.ndarray
    seconds: np.ndarray
    robust: np.ndarray
    natural: np.ndarray
    train_pgd: np.ndarray
    train_robust: np.ndarray
    robust_loss: np.ndarray
    loss: np.ndarray

    def band(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean and the sample standard deviation over the seeds, (E,) each.

        An epoch that not all runs reached has nan, as a mean over fewer of them would jump. For one run the deviation
        is nan.
        """
        values = getattr(self, key)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
        return values.mean(axis=0), spread


PANELS: Mapping[str, str] = {
    "robust": "accuracy on held-out images under PGD-20",
    "natural": "accuracy on held-out images",
    "train_pgd": "accuracy on training images under {attack}",
    "robust_loss": "cross-entropy on held-out images under PGD-20",
    "loss": "loss on training images under the attack of the training",
}
"""The metrics that are drawn, with the titles of their panels."""
METRICS = tuple(one.name for one in fields(EntryCurves) if one.name not in ("seeds", "epochs", "seconds"))


def entry_curves(entry: Entry) -> EntryCurves:
    """Reads the metrics of the runs of an entry.

    Args:
        entry: The runs.
    """
    rows = [run.source.metrics for run in entry.runs]
    epochs = max((row["epoch"] + 1 for one in rows for row in one), default=0)
    values = {key: np.full((len(rows), epochs), np.nan) for key in METRICS}
    seconds = np.full((len(rows), epochs), np.nan)
    for number, (run, metrics) in enumerate(zip(entry.runs, rows, strict=True)):
        for row in metrics:
            for key in METRICS:
                if isinstance(value := row.get(key), (int, float)):
                    values[key][number, row["epoch"]] = value
        times = epoch_seconds(run.folder.path)[:epochs]
        seconds[number, : len(times)] = times.cumsum()
    return EntryCurves(np.array(entry.seeds), np.arange(1, epochs + 1), seconds, **values)


def plot_curves(curves: Mapping[str, EntryCurves], key: str, x: str, ax: "Axes", title: str) -> "Axes":
    """Draws a metric of all entries: the mean over the seeds, and a band of one standard deviation.

    Args:
        curves: By the names of the entries.
        key: One of `PANELS`.
        x: "epoch" or "time".
        ax: The axes.
        title: Of the panel.
    """
    unit, scale = time_unit(list(curves.values()))
    percent = 1 if key.endswith("loss") else 100
    alpha = 0.2 if len(curves) <= 8 else 0.08
    for number, one in enumerate(curves.values()):
        mean, spread = one.band(key)
        if np.isnan(mean).all():
            continue
        at = one.epochs if x == "epoch" else one.seconds.mean(axis=0) / scale
        style = line_style(number)
        few = np.isfinite(mean).sum() == 1
        ax.plot(at, percent * mean, marker="o" if few else None, **style)
        if np.isfinite(spread).any():
            low, high = percent * (mean - spread), percent * (mean + spread)
            if percent == 100:  # where the band leaves what an accuracy can be, it says nothing
                low, high = low.clip(0, 100), high.clip(0, 100)
            ax.fill_between(at, low, high, color=style["color"], alpha=alpha, linewidth=0)
    ax.set_ylabel("loss" if percent == 1 else "accuracy (%)")
    ax.set_title(title, fontsize="medium")
    ax.grid(alpha=0.3)
    if x == "epoch":
        epochs_on_x(ax)
    else:
        ax.set_xlabel(f"time of training ({unit})")
        ax.set_xlim(left=0)
    return ax


def plot_legend(names: Sequence[str], ax: "Axes") -> "Axes":
    """Draws the legend of the curves as a panel of its own."""
    for number, name in enumerate(names):
        ax.plot([], [], label=name, **line_style(number))
    ax.set_axis_off()
    columns = 1 + len(names) // 16
    ax.legend(loc="center", frameon=False, ncols=columns, fontsize="medium" if len(names) < 12 else "small")
    return ax


def line_style(number: int) -> dict[str, Any]:
    """The colour and dashes of an entry, by its number."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number // len(COLORS) % len(DASHES)]}


def time_unit(curves: Sequence[EntryCurves]) -> tuple[str, float]:
    """The unit of time for the longest run, and its seconds."""
    last = [one.seconds[np.isfinite(one.seconds)].max(initial=0.0) for one in curves]
    longest = max(last, default=0.0)
    return next((name, seconds) for name, seconds, least in UNITS if longest >= least)
