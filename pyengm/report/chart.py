"""Line charts as SVG that takes the fonts and the colours of the page, in light and dark."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pyengm.utils.figures import figure_class

WIDTH, HEIGHT = 4.9, 2.9  # inches of 72 units
# Colours that stand for variables of the page's style sheet.
INK, MUTED, GRID = "#000101", "#000102", "#000103"
SERIES_COLORS = tuple(f"#0002{i:02x}" for i in range(6))
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_VARIABLES |= {color: f"var(--series-{i})" for i, color in enumerate(SERIES_COLORS)}
DASHES = ((), (5, 2.5), (1.2, 2), (5, 2, 1.2, 2))
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "axes.labelsize": 11.5,
}


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        label: Its name in the legend.
        x, y: The points.
        color: The number of its colour.
        dash: The number of its pattern of dashes.
        band: The lower and the upper end of an interval at each point, if there is one.
        markers: Whether the points are marked.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    dash: int = 0
    band: tuple[Sequence[float], Sequence[float]] | None = None
    markers: bool = False

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Its points as texts: x, y and the interval, which may be empty."""
        low, high = self.band or ((), ())
        bands = [f"{a:.1f} to {b:.1f}" for a, b in zip(low, high, strict=True)] or [""] * len(self.x)
        return [(f"{x:.5g}", f"{y:.4g}", band) for x, y, band in zip(self.x, self.y, bands, strict=True)]

    @property
    def variable(self) -> str:
        """Its colour in the style sheet."""
        return f"var(--series-{self.color % len(SERIES_COLORS)})"

    @property
    def dasharray(self) -> str:
        """Its dashes, as SVG has them."""
        return " ".join(map(str, DASHES[self.dash % len(DASHES)])) or "none"


@dataclass(frozen=True)
class Chart:
    """A chart of lines.

    Args:
        title: Its heading.
        text: What it shows, for those who cannot see it.
        x_label, y_label: The names of the axes, with units.
        series: The lines.
        y_range: The ends of the vertical axis; None for those of the lines.
        whole_x: Whether the horizontal axis counts whole numbers.
        root_x: Whether it has a square-root scale.
        marks: Positions on the horizontal axis that are marked, each with a color number.
    """

    title: str
    text: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    y_range: tuple[float, float] | None = (0, 100)
    whole_x: bool = False
    root_x: bool = False
    marks: Sequence[tuple[float, int]] = ()

    def svg(self) -> Markup:
        """The chart as an element of a page, the same to the byte for the same lines."""
        from matplotlib import rc_context
        from matplotlib.ticker import MaxNLocator

        figure_type = figure_class()
        salt = hashlib.sha256(repr(self).encode()).hexdigest()  # so that no two charts of a page share an id
        file = io.StringIO()
        style: Any = {**_STYLE, "svg.hashsalt": salt}
        with rc_context(style):
            figure = figure_type(figsize=(WIDTH, HEIGHT), layout="constrained")
            axes = figure.subplots()
            for position, color in self.marks:
                axes.axvline(position, color=_color(color), linewidth=1, alpha=0.5, dashes=(2, 2))
            for one in self.series:
                _draw(axes, one)
            axes.set(xlabel=self.x_label, ylabel=self.y_label)
            axes.margins(x=0.02)
            if self.root_x:
                axes.set_xscale("function", functions=(_signed_root, _signed_square))
            if self.y_range is not None:
                axes.set_ylim(*self.y_range)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=self.whole_x))
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _as_element(file.getvalue(), f"{self.title}. {self.text}")


def _signed_root(x: Any) -> Any:
    return np.sign(x) * np.abs(x) ** 0.5


def _signed_square(x: Any) -> Any:
    return np.sign(x) * np.square(x)


def _color(number: int) -> str:
    return SERIES_COLORS[number % len(SERIES_COLORS)]


def _draw(axes: Any, one: Series) -> None:
    dashes = DASHES[one.dash % len(DASHES)]
    style = {"dashes": dashes} if dashes else {}
    marker = {"marker": "o", "markersize": 4} if one.markers or len(one.x) == 1 else {}
    axes.plot(one.x, one.y, color=_color(one.color), clip_on=False, **style, **marker)
    if one.band is not None:
        axes.fill_between(one.x, *one.band, color=_color(one.color), alpha=0.14, linewidth=0)


def _as_element(text: str, label: str) -> Markup:
    """The svg element alone, without names of elements that nothing refers to, in the colours of the page."""
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;\"]*", r"font-size: \1", element)  # of matplotlib before 3.11
    element = re.sub(r" ?font-family: [^;\"]*;?", "", element)
    for color, variable in _VARIABLES.items():
        element = element.replace(color, variable)
    box = re.search(r'viewBox="[^"]*"', element)
    assert box is not None
    inside = element[element.index(">") + 1 :]
    return Markup('<svg {} role="img" aria-label="{}" xmlns:xlink="http://www.w3.org/1999/xlink">{}').format(
        Markup(box[0]), label, Markup(inside)
    )
