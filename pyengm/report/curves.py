"""The curves of the training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyengm.report.chart import Chart, Series
from pyengm.report.source import Source

ACCURACIES = (  # key, label, color, dash
    ("natural", "held out, natural", 1, 0),
    ("robust", "held out, PGD-20", 0, 0),
    ("train_robust", "training, attacked", 2, 1),
)
LOSSES = (("robust_loss", "held out, PGD-20", 0, 0), ("loss", "training, attacked", 2, 1))


@dataclass(frozen=True)
class ChartGroup:
    """Charts below one heading."""

    heading: str
    charts: list[Chart]


def training_charts(sources: Sequence[Source]) -> list[ChartGroup]:
    """The charts of runs with metrics: of all runs together where there are several, then of each."""
    runs = [source for source in sources if source.metrics]
    groups = []
    if len(runs) > 1:
        titles = {"robust": "Held-out accuracy under PGD-20", "natural": "Held-out natural accuracy"}
        together = [
            chart
            for key, title in titles.items()
            for chart in _chart(title, [_series(source, key, source.label, i, i // 6) for i, source in enumerate(runs)])
        ]
        groups.append(ChartGroup("All runs", together))
    groups += [ChartGroup(source.label if len(sources) > 1 else "", _charts_of(source)) for source in runs]
    return [group for group in groups if group.charts]


def _charts_of(source: Source) -> list[Chart]:
    lines = [_series(source, *line) for line in ACCURACIES]
    charts = _chart("Accuracy", lines, marks=_best(source.metrics))
    lines = [_series(source, *line, scale=1) for line in LOSSES]
    charts += _chart("Loss", lines, y_label="loss", y_range=None)
    if any(row.get("clipped") for row in source.metrics):
        clipped = _series(source, "clipped", "examples with a clipped gradient", 3, 0)
        charts += _chart("Clipped examples", [clipped], y_label="share (%)")
    return charts


def _series(source: Source, key: str, label: str, color: int, dash: int, scale: float = 100) -> Series | None:
    """The values of a key by epoch; None where no epoch has one."""
    points = [(row["epoch"] + 1, scale * row[key]) for row in source.metrics if _is_finite(row.get(key))]
    return Series(label, *map(list, zip(*points, strict=True)), color=color, dash=dash) if points else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _chart(title: str, series: Sequence[Series | None], **options: Any) -> list[Chart]:
    """A chart of the lines that exist; none where there is no line."""
    lines = [one for one in series if one is not None]
    if not lines:
        return []
    options = {"y_label": "accuracy (%)", **options}
    text = "By epoch; at the last one: " + ", ".join(f"{one.label} {one.y[-1]:.3g}" for one in lines)
    return [Chart(title, text, "epoch", series=lines, whole_x=True, **options)]


def _best(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """The epoch of the best weights."""
    best = [row["epoch"] + 1 for row in metrics if row.get("best")]
    return [(best[-1], 0)] if best else []
