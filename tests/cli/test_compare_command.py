"""`pyengm compare`: its files, their description, and folders that hold something else."""

import json

import numpy as np
import pytest
from helpers.run_folders import write_run

from pyengm import cli
from pyengm.comparison import Comparison


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"{a}-{s}", s, alpha=a) for a in (1, 5) for s in (0, 1)]


def run(*words):
    return cli.main(["compare", *map(str, words)])


def test_the_files(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*runs, "--x", "time", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "| alpha | seeds | natural best (%) |" in printed
    assert "mean ± sample standard deviation" in printed
    suffixes = {name: {path.suffix for path in out.glob(f"{name}.*")} for name in ("curves", "overfitting", "table")}
    assert suffixes["curves"] == suffixes["overfitting"] == {".npz", ".json", ".svg", ".png"}
    assert suffixes["table"] == {".md", ".tex", ".csv", ".json"}
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    arrays = np.load(out / "curves.npz")
    assert arrays["alpha=5/robust"].shape == (2, 3)
    assert arrays["alpha=5/seeds"].tolist() == [0, 1]
    np.testing.assert_allclose(arrays["alpha=1/loss"][0], [1.68, 1.58, 1.48])


def test_every_file_says_how_it_was_made(runs, tmp_path):
    out = tmp_path / "out"
    assert run(*runs, "--out", out) == 0
    for name in ("curves", "overfitting", "sensitivity", "table"):
        content = json.loads((out / f"{name}.json").read_text())
        assert content["analysis"] == name
        assert [entry["name"] for entry in content["entries"]] == ["alpha=1", "alpha=5"]
        made = content["entries"][0]["runs"][1]
        assert (made["seed"], made["command"], made["git"]["pyengm"]["commit"]) == (1, ["pyengm", "train"], "0" * 40)
        assert made["data"]["test"]["images"] == 360
        assert set(made["sha256"]) == {"results.json", "metrics.jsonl"}
        assert content["environment"]["command"]
    for name in ("table.md", "table.tex"):
        assert "alpha=1, seed 0: commit 000000000000, pyengm train" in (out / name).read_text()


def test_a_comparison_of_other_runs_is_not_overwritten(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Comparison, "figures", lambda self, x: {})
    out = tmp_path / "out"
    assert run(*runs, "--out", out) == 0
    before = (out / "table.csv").read_bytes()
    assert run(*runs, "--out", out) == 0  # the same again
    assert run(*runs[:2], "--out", out) == 1
    assert "not overwritten" in " ".join(capsys.readouterr().err.split())
    text = (runs[0] / "results.json").read_text()
    (runs[0] / "results.json").write_text(text.replace("0.1", "0.2"))
    assert run(*runs, "--out", out) == 1
    assert (out / "table.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "runs is missing"),
        (["RUN", "--x", "step"], 2, "known: epoch, time"),
        (["RUN", "--oot", "a"], 2, "did you mean --out?"),
    ],
)
def test_wrong_words(runs, capsys, words, status, message):
    words = [str(runs[0]) if word == "RUN" else word for word in words]
    try:
        found = run(*words)
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert message in " ".join(capsys.readouterr().err.split())
