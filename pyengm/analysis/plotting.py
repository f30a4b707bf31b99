"""The style of all figures: axes that are made where none are given, and colours that everybody can tell apart."""

from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008


def make_axes(axes: Any = None, count: int = 1, size: tuple[float, float] = (4.2, 3.2)) -> list[Axes]:
    """The axes that were given, one or a list of `count`, or new ones side by side."""
    if axes is not None:
        return list(axes) if isinstance(axes, (list, tuple)) else [axes]
    figure = Figure(figsize=(size[0] * count, size[1]), layout="constrained")
    made = figure.subplots(1, count, squeeze=False)[0]
    return list(made)


def finish(axes: Axes, x: str, y: str, title: str = "") -> Axes:
    """Labels, a light grid, and no box around the axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def figure_of(axes: Any) -> matplotlib.figure.Figure:
    """The figure of axes, one or a list."""
    first = axes[0] if isinstance(axes, (list, tuple)) else axes
    found = first.get_figure()
    assert isinstance(found, Figure)
    return found
