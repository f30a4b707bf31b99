"""The lines of the charts."""

import json

import pytest

from pyengm.report.curves import training_charts
from pyengm.report.eps_curves import eps_charts
from pyengm.report.interval import wilson_interval
from pyengm.report.source import find_sources


def test_training(run):
    (source,) = find_sources([run])
    (group,) = training_charts([source])
    assert (group.heading, [chart.title for chart in group.charts]) == ("", ["Accuracy", "Loss", "Clipped examples"])
    lines = {line.label: line for line in group.charts[0].series}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines["held out, PGD-20"].x == [1, 2, 3]
    assert lines["held out, PGD-20"].y == pytest.approx([100 * row["robust"] for row in rows])
    best = max(row["epoch"] for row in rows if row["best"])
    assert group.charts[0].marks == [(best + 1, 0)]


def test_training_of_several_runs(run):
    groups = training_charts(find_sources([run, run]))
    assert [group.heading for group in groups] == ["All runs", "first-run", "first-run (2)"]
    assert [line.label for line in groups[0].charts[0].series] == ["first-run", "first-run (2)"]


def test_accuracy_against_eps(tmp_path, detailed):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(detailed))
    (chart,) = eps_charts(find_sources([path]))
    attack, trust = (next(line for line in chart.series if text in line.label) for text in ("steps=5", "checks"))
    natural = detailed["best"]["natural"]
    assert len(chart.series) == 3  # the attack on best and last, and the checks of best
    assert attack.x == [0.05, 0.1, 0.15]  # natural accuracies are of other images, as the standard error says
    assert attack.y == pytest.approx([100 * natural * (1 - 2 * eps) for eps in attack.x])
    low, high = wilson_interval(natural * 0.9, 360)
    assert (attack.band[0][0], attack.band[1][0]) == pytest.approx((100 * low, 100 * high))
    assert (trust.x, trust.y) == ([0.0, 0.1, 0.2], [90.0, 60.0, 30.0])
    assert chart.x_label == "eps"
    last = next(line for line in chart.series if "last" in line.label)
    assert (last.x[0], last.y[0]) == (0.0, pytest.approx(100 * detailed["last"]["natural"]))


def test_radii_in_levels_and_far_apart(tmp_path, content):
    content["best"] |= {f"pgd:eps={eps}": 0.5 for eps in ("2/255", "4/255", "8/255", "0.5")}
    content["best"]["fgsm:eps=8/255"] = 0.4  # one radius is no curve
    (tmp_path / "mine.json").write_text(json.dumps(content))
    (chart,) = eps_charts(find_sources([tmp_path / "mine.json"]))
    assert (chart.x_label, chart.root_x) == ("eps in 1/255 (square-root scale)", True)
    assert [line.x for line in chart.series] == [pytest.approx([0, 2, 4, 8, 127.5])]


def test_none(run):
    assert eps_charts(find_sources([run])) == []
