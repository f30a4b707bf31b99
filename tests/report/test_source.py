"""Runs and files that a report is about, and paths that are none."""

import json
import shutil

import pytest

from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.report.source import find_sources


def labels(*paths):
    return [source.label for source in find_sources(paths)]


def test_a_run_folder(run):
    (source,) = find_sources([run])
    assert (source.label, source.run.path) == ("first-run", run)
    assert [row["epoch"] for row in source.metrics] == [0, 1, 2]
    assert source.environment["versions"]["torch"]
    assert source.options["optimizer"]["name"] == "engm"
    assert source.evaluations() == {"": source.results}


def test_files_and_labels(run, tmp_path, monkeypatch):
    (run / "evaluations").mkdir()
    for path in (run / "evaluations/001.json", tmp_path / "mine.json"):
        shutil.copy(run / "results.json", path)
    found = labels(run, run / "results.json", run / "evaluations/001.json", tmp_path / "mine.json", run)
    assert found == ["first-run", "first-run results", "first-run 001", "mine", "first-run (2)"]
    monkeypatch.chdir(run)
    assert labels(".") == ["first-run"]


def test_runs_of_several_seeds(run, tmp_path):
    seeds = tmp_path / "seeds"
    for seed in (0, 1):
        shutil.copytree(run, seeds / f"seed-{seed}")
    assert labels(seeds) == ["seeds seed-0", "seeds seed-1"]


def test_further_evaluations(run):
    folder = run / "evaluations"
    folder.mkdir()
    shutil.copy(run / "results.json", folder / "001.json")
    (folder / "002.json").touch()  # of an evaluation that runs, or was killed
    (source,) = find_sources([run])
    assert list(source.evaluations()) == ["", "001"]


def test_what_a_run_may_lack(run):
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").write_text("[")
    (source,) = find_sources([run])
    assert (source.metrics, source.environment) == ([], None)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), ConfigError, "first-run is no run folder of pyengm"),
        (lambda run: (run / "config.yaml").write_text("a: ["), ConfigError, "cannot read the configuration"),
        (lambda run: (run / "results.json").unlink(), ConfigError, r"is not finished: .* --resume completes it"),
        (lambda run: (run / "results.json").write_text("{"), CheckpointError, "--resume evaluates the run again"),
        (lambda run: (run / "results.json").write_text("{}"), DataError, "holds no results of an evaluation"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n{"), CheckpointError, "metrics.jsonl is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), CheckpointError, "a line without an epoch"),
        (lambda run: shutil.rmtree(run), ConfigError, "there is no run folder and no file"),
    ],
)
def test_errors(run, change, kind, message):
    change(run)
    with pytest.raises(kind, match=message):
        find_sources([run])


def test_a_damaged_further_evaluation(run):
    (run / "evaluations").mkdir()
    (run / "evaluations/001.json").write_text(json.dumps({"best": 3}))
    with pytest.raises(DataError, match=r"001.json holds no results"):
        find_sources([run])


def test_nothing():
    with pytest.raises(ConfigError, match="there is nothing to report"):
        find_sources([])
