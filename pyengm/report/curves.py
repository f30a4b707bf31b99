"""The curves of the training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyengm.report.chart import Chart, Series
from pyengm.report.source import Source

ACCURACIES = (  # key, label, color, dash
    ("natural", "held out, natural", 1, 0),
    ("robust", "held out, PGD-20", 0, 0),
    ("train_robust", "training, attacked", 2, 1),
)
LOSSES = (("robust_loss", "held out, PGD-20", 0, 0), ("loss", "training, attacked", 2, 1))


def training_charts(sources: Sequence[Source]) -> list[Chart]:
    """The charts of runs with metrics: the runs together where there are several, then accuracy and loss of each."""
    runs = [source for source in sources if source.metrics]
    charts = []
    if len(runs) > 1:
        for key, title in (("robust", "Held-out accuracy under PGD-20"), ("natural", "Held-out natural accuracy")):
            series = [_series(source, key, source.label, i, i // 6) for i, source in enumerate(runs)]
            charts += _chart(title, "by epoch, one line for each run", series)
    for source in runs:
        name = f"{source.label}: " if len(sources) > 1 else ""
        series = [_series(source, *line) for line in ACCURACIES]
        charts += _chart(f"{name}accuracy", "by epoch", series, marks=_best(source.metrics))
        series = [_series(source, *line, scale=1) for line in LOSSES]
        charts += _chart(f"{name}loss", "by epoch", series, y_label="loss", y_range=None)
        if any("clipped" in row for row in source.metrics):
            shares = [_series(source, "clipped", "examples with a clipped gradient", 3, 0)]
            charts += _chart(f"{name}clipped examples", "by epoch", shares, y_label="share (%)")
    return charts


def _series(source: Source, key: str, label: str, color: int, dash: int, scale: float = 100) -> Series | None:
    """The values of a key by epoch; None where no epoch has one."""
    points = [(row["epoch"] + 1, scale * row[key]) for row in source.metrics if _is_finite(row.get(key))]
    return Series(label, *map(list, zip(*points, strict=True)), color=color, dash=dash) if points else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _chart(title: str, text: str, series: Sequence[Series | None], **options: Any) -> list[Chart]:
    """A chart of the lines that exist; none where there is no line."""
    lines = [one for one in series if one is not None]
    if not lines:
        return []
    options = {"y_label": "accuracy (%)", **options}
    text = f"{title} {text}. At the last epoch: " + ", ".join(f"{one.label} {one.y[-1]:.3g}" for one in lines)
    return [Chart(title[0].upper() + title[1:], text, "epoch", series=lines, whole_x=True, **options)]


def _best(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """The epoch of the best weights."""
    best = [row["epoch"] + 1 for row in metrics if row.get("best")]
    return [(best[-1], 0)] if best else []
