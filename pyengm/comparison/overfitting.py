"""Robust overfitting: what the last weights have lost of the accuracy of the best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyengm.comparison.entries import Entry
from pyengm.evaluation import robust_overfitting
from pyengm.utils.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATTACK = "pgd20"


@dataclass(frozen=True)
class EntryOverfitting:
    """Test accuracy of the S runs of an entry under PGD-20, shares in [0, 1].

    Attributes:
        seeds: (S,) of the runs.
        best: (S,) of the weights that were selected on held-out images.
        last: (S,) of the last weights.
        difference: (S,) best - last.
        relative: (S,) (best - last) / best in per cent, as the ENGM paper has it.
    """

    seeds: np.ndarray
    best: np.ndarray
    last: np.ndarray
    difference: np.ndarray
    relative: np.ndarray


def entry_overfitting(entry: Entry) -> EntryOverfitting | None:
    """Reads the results of the runs of an entry; None where no images selected the best weights.

    Args:
        entry: The runs.

    References:
        Rice et al. 2020, Sec. 3; Dabouei et al. 2022, Sec. 3, "Evaluation Setup".
    """
    results = [run.source.results.content for run in entry.runs]
    if not entry.is_selected or any(ATTACK not in one.get(model, ()) for one in results for model in ("best", "last")):
        return None
    best, last = (np.array([one[model][ATTACK] for one in results]) for model in ("best", "last"))
    relative = np.array([robust_overfitting(*pair) for pair in zip(best, last, strict=True)])
    return EntryOverfitting(np.array(entry.seeds), best, last, best - last, relative)


def plot_overfitting(found: Mapping[str, EntryOverfitting], ax: "Axes") -> "Axes":
    """Draws a bar for each entry: best minus last in points, with one standard deviation over the seeds."""
    names = list(found)
    means = [100 * one.difference.mean() for one in found.values()]
    spreads = [100 * one.difference.std(ddof=1) if len(one.seeds) > 1 else 0.0 for one in found.values()]
    places = np.arange(len(names))[::-1]
    ax.barh(places, means, xerr=spreads, color=COLORS[0], capsize=3, height=0.7, error_kw={"linewidth": 1})
    for one, place in zip(found.values(), places, strict=True):
        ax.plot(100 * one.difference, np.full(len(one.seeds), place), "o", color="black", markersize=3, alpha=0.6)
    ax.set_yticks(places, names, fontsize="medium" if len(names) < 12 else "small")
    ax.axvline(0, color="gray", linewidth=0.8)
    ax.set_xlabel("best - last accuracy under PGD-20 (points)", loc="right")  # the names of entries may be long
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return ax
