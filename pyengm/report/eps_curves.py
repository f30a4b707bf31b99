"""Accuracy against eps, where it was measured for several radii."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyengm.evaluation.attack_registry import NATURAL
from pyengm.report.chart import Chart, Series
from pyengm.report.interval import wilson_interval
from pyengm.report.results import Results
from pyengm.report.source import Source
from pyengm.utils.pixels import format_pixels

NORMS = {"linf": "L-infinity", "l2": "L2"}


@dataclass(frozen=True)
class _Curve:
    label: str
    norm: str
    points: dict[float, tuple[float, int]]  # accuracy and images by eps


def eps_charts(sources: Sequence[Source]) -> list[Chart]:
    """A chart for each norm, of the attacks that ran with several radii and of the checks of trust."""
    curves = [curve for source in sources for curve in _curves_of(source, named=len(sources) > 1)]
    charts = []
    for norm in dict.fromkeys(curve.norm for curve in curves):
        charts.append(_chart(norm, [curve for curve in curves if curve.norm == norm]))
    return charts


def _chart(norm: str, curves: Sequence[_Curve]) -> Chart:
    radii = sorted({eps for curve in curves for eps in curve.points})
    in_levels = any("/255" in format_pixels(eps) for eps in radii)
    lines = [_series(curve, i, 255.0 if in_levels else 1.0) for i, curve in enumerate(curves)]
    is_wide = len(radii) > 2 and radii[-1] > 2.5 * radii[-2]
    unit = "eps in 1/255" if in_levels else "eps"
    text = "Bands are 95 % intervals. " + "; ".join(
        f"{one.label}: from {one.y[0]:.1f} % at {one.x[0]:.3g} to {one.y[-1]:.1f} % at {one.x[-1]:.3g}" for one in lines
    )
    label = f"{unit} (square-root scale)" if is_wide else unit
    return Chart(f"Accuracy against eps, {NORMS.get(norm, norm)}", text, label, "accuracy (%)", lines, root_x=is_wide)


def _curves_of(source: Source, *, named: bool) -> Iterator[_Curve]:
    for number, results in source.evaluations().items():
        for model in results.models:
            where = " ".join(filter(None, (source.label if named else "", number, model)))
            yield from _attack_curves(results, model, where)
            yield from _trust_curves(results, model, where)


def _attack_curves(results: Results, model: str, where: str) -> Iterator[_Curve]:
    natural = next(one for one in results.measured(model) if one.key.name == NATURAL)
    for (norm, title), measured in results.curves(model).items():
        points = {one.key.threat.eps: (one.value, one.images or 1) for one in measured if one.key.threat is not None}
        if {one.images for one in measured} == {natural.images}:  # the same images
            points.setdefault(0.0, (natural.value, results.all_images))
        yield _Curve(f"{where}, {title}", norm, points)


def _trust_curves(results: Results, model: str, where: str) -> Iterator[_Curve]:
    for norm, block in ((results.detail("trust") or {}).get(model) or {}).items():
        curve = block.get("curve") or {}
        points = dict(zip(curve.get("eps", ()), curve.get("accuracy", ()), strict=False))
        if len(points) > 1:
            values = {float(eps): (float(value), int(block["images"])) for eps, value in points.items()}
            yield _Curve(f"{where}, PGD of the checks", norm, values)


def _series(curve: _Curve, number: int, scale: float) -> Series:
    points = sorted(curve.points.items())
    low, high = zip(*(wilson_interval(value, images) for _, (value, images) in points), strict=True)
    return Series(
        curve.label,
        [scale * eps for eps, _ in points],
        [100 * value for _, (value, _) in points],
        color=number,
        dash=number // 6,
        band=([100 * one for one in low], [100 * one for one in high]),
        markers=True,
    )
