"""Figures of matplotlib, which is imported where the first one is made."""

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design", without yellow, which is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HEAT = "cividis"  # map of colours, in equal steps of lightness


def figure_class() -> "type[Figure]":
    """Imports matplotlib, which takes half a second, and without the backend of the environment.

    The kernel of a notebook may name one that is not installed here, which matplotlib refuses on import.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):
            rcParams["backend"] = backend
    return Figure


def axes_or_new(ax: "Axes | None", width: float = 6.0, height: float = 4.0) -> "Axes":
    """The axes, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    return figure_class()(figsize=(width, height), dpi=120, layout="constrained").subplots()


def legend_above(ax: "Axes", columns: int = 2) -> None:
    """A legend that covers no data, above the axes."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize="small", frameon=False)


def epochs_on_x(ax: "Axes") -> None:
    """An axis of whole numbers of epochs."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
