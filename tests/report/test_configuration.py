"""Options of runs side by side."""

from dataclasses import replace

from pyengm.report.configuration import UNKNOWN, environments_of_runs, options_of_runs
from pyengm.report.source import find_sources


def test_options_side_by_side(run):
    (first,) = find_sources([run])
    changed = {**first.options, "attack": {**first.options["attack"], "eps": 8 / 255, "step_size": None}}
    second = replace(first, options=changed)
    third = replace(first, options={"attack": {"eps": 0.2}})
    rows = {row.name: row for group in options_of_runs([first, second, third]) for row in group.rows}
    assert rows["eps"].values == ["0.2", "8/255", "0.2"]
    assert rows["eps"].differs
    assert rows["momentum"].values == ["0.9", "0.9", UNKNOWN]
    assert "mean" not in rows  # none in all runs
    assert "out" not in rows  # an option of one call


def test_environments(run):
    (first,) = find_sources([run])
    second = replace(first, environment=None)
    rows = {row.name: row for group in environments_of_runs([first, second]) for row in group.rows}
    assert rows["torch"].values == [first.environment["versions"]["torch"], UNKNOWN]
    assert environments_of_runs([second]) == []
