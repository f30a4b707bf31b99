"""Sweeps: folders, the table of runs, interrupted and killed ones, changed commands, and runs that fail."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
from helpers.run_folders import write_run

from pyengm import cli
from pyengm.cli import sweep as cli_sweep
from pyengm.comparison import Comparison
from pyengm.evaluation import parallel
from pyengm.reproduce.paper_sweeps import load_sweep
from pyengm.training import RunFolder, TrainConfig, multi_run

TINY = ["--model", "cnn4", "--width", "2", "--attack-steps", "1", "--batch-size", "128", "--epochs", "2"]
TINY += ["--autoattack-examples", "4", "--device", "cpu", "--cpu-threads", "1", "--no-eval-both-threats", "--quiet"]


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch):
    """AutoAttack with few queries, in this process."""
    init = pyautoattack.AutoAttack.__init__

    def short(package, *args, **options):
        init(package, *args, **options)
        package.square.n_queries = 20

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
    monkeypatch.setattr(parallel, "cores", lambda: 1)


@pytest.fixture
def made_up(monkeypatch):
    """Runs that are written, not trained; the test may say what happens before each. Figures are not drawn."""
    calls = []
    monkeypatch.setattr(Comparison, "figures", lambda self, x: {})

    def write(config):
        calls.append(config)
        for hook in hooks:
            hook(config)
        if config.run.resume:  # what is there is of a start that wrote its options alone
            (config.run.out / "config.yaml").unlink()
            config.run.out.rmdir()
        values = {name: config.get(name) for name in ("optimizer", "alpha", "epochs", "model", "width")}
        write_run(config.run.out, config.run.seed, **{k: v for k, v in values.items() if v is not None})
        config.save(config.run.out / "config.yaml")
        return json.loads((config.run.out / "results.json").read_text())

    hooks = []
    monkeypatch.setattr(multi_run, "train", write)
    return calls, hooks


@pytest.fixture
def toy_recipes(monkeypatch):
    """The recipes of this folder in place of the papers'."""
    monkeypatch.setattr(cli_sweep, "load_sweep", partial(load_sweep, folder=Path(__file__).parent / "recipes"))


def sweep(out, *words, seeds=("0", "1"), train=TINY):
    return cli.main(["sweep", "--out", str(out), *words, "--seeds", *seeds, "--", *train])


def rows(out):
    return list(csv.DictReader((out / "runs.csv").read_text().splitlines()))


GRID = ["--grid", "optimizer=msgd,engm", "alpha=1,5"]


def test_a_folder_and_a_row_for_each_run(tmp_path, made_up, capsys):
    out = tmp_path / "out"
    assert sweep(out, *GRID) == 0
    assert sorted(path.parent.relative_to(out).as_posix() for path in out.glob("*/*/config.yaml")) == [
        f"{point}/seed-{seed}" for point in ("engm-alpha-1", "engm-alpha-5", "msgd") for seed in (0, 1)
    ]
    table = rows(out)
    assert [(row["run"], row["seed"], row["state"]) for row in table] == [
        (name, seed, "complete") for name in ("msgd", "engm, alpha=1", "engm, alpha=5") for seed in ("0", "1")
    ]
    results = json.loads((out / "engm-alpha-5/seed-1/results.json").read_text())
    assert float(table[5]["best autoattack"]) == results["best"]["autoattack"]
    assert float(table[5]["alpha"]) == 5
    assert "| msgd | - | 2 | " in capsys.readouterr().out
    content = json.loads((out / "comparison/table.json").read_text())
    assert content["sweep"]["grid"] == {"optimizer": ["msgd", "engm"], "alpha": ["1", "5"]}


def test_several_grids_are_one(tmp_path, made_up):
    assert sweep(tmp_path / "out", "--grid", "optimizer=msgd,engm", "--grid=alpha=1,5") == 0
    assert len(rows(tmp_path / "out")) == 6


def test_an_interrupted_sweep_resumes(tmp_path, made_up, capsys):
    calls, hooks = made_up
    out = tmp_path / "out"

    def interrupt(config):
        if len(calls) == 3:
            config.run.out.mkdir(parents=True)
            config.save(config.run.out / "config.yaml")
            raise KeyboardInterrupt

    hooks.append(interrupt)
    assert sweep(out, *GRID) == 75
    assert "2 of 6 runs are complete; the same command resumes" in " ".join(capsys.readouterr().err.split())
    assert [row["state"] for row in rows(out)] == ["complete"] * 2 + ["to do"] * 4
    assert sweep(out, *GRID) == 0
    trained = [(one.optimizer.name, one.optimizer.alpha, one.run.seed) for one in calls]
    assert trained[2] == trained[3] == ("engm", 1, 0)
    assert len(trained) == 7  # and no complete run again
    assert {row["state"] for row in rows(out)} == {"complete"}
    assert sweep(out, *GRID) == 0
    assert len(calls) == 7


def test_a_changed_command_is_refused_with_what_differs(tmp_path, made_up, capsys):
    out = tmp_path / "out"
    assert sweep(out, *GRID) == 0
    before = (out / "sweep.yaml").read_bytes()
    for words, seeds, train, message in (
        (["--grid", "optimizer=msgd,engm", "alpha=1,4"], "01", TINY, "alpha=1,5 and is optimizer=msgd,engm alpha=1,4"),
        (GRID, "0", TINY, "seeds was 0 1 and is 0"),
        (GRID, "01", [*TINY, "--lr", "0.3"], "lr of 'msgd' was 0.2 and is 0.3"),
    ):
        assert sweep(out, *words, seeds=tuple(seeds), train=train) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert "holds another sweep" in error
        assert message in error
    assert (out / "sweep.yaml").read_bytes() == before
    assert sweep(out, *GRID, train=[*TINY, "--data-dir", str(tmp_path)]) == 0  # where the data are may change


def test_a_run_that_fails_leaves_the_others(tmp_path, made_up, capsys):
    calls, hooks = made_up
    out = tmp_path / "out"

    def fail(config):
        if config.optimizer.alpha == 1 and config.run.seed == 1:
            raise RuntimeError("out of memory")

    hooks.append(fail)
    assert sweep(out, *GRID) == 1
    assert [row["state"] for row in rows(out)] == ["complete"] * 3 + ["failed"] + ["complete"] * 2
    assert rows(out)[3]["error"] == "RuntimeError: out of memory"
    assert "FAILED: engm, alpha=1, seed 1: RuntimeError: out of memory" in capsys.readouterr().out
    content = json.loads((out / "comparison/table.json").read_text())
    assert content["failed"] == {"engm, alpha=1, seed 1": "RuntimeError: out of memory"}
    assert [len(entry["runs"]) for entry in content["entries"]] == [2, 1, 2]
    hooks.clear()
    assert sweep(out, *GRID) == 0
    assert len(calls) == 7
    assert {(row["state"], row["error"]) for row in rows(out)} == {("complete", "")}


def test_every_run_fails(tmp_path, made_up, capsys):
    made_up[1].append(lambda config: 1 / 0)
    assert sweep(tmp_path / "out", *GRID, seeds=("0",)) == 1
    assert "every run failed: msgd, seed 0: ZeroDivisionError" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "train", "status", "message"),
    [
        (["--grid", "alpha=1,5"], ["--seed", "3"], 2, "--seed after -- would be of a single run"),
        (["--grid", "alpha=1,5"], ["--out", "x", "--resume"], 2, "--out, --resume after --"),
        (["--grid", "data=digits,mnist"], [], 1, "compares its runs on one data set, and these have digits, mnist"),
        (["--grid", "alpha=1,5", "--recipe", "engm-fig5"], [], 1, "grid has no effect beside recipe"),
        (["--grid", "alpha=1,5", "--parts", "tau"], [], 1, "parts has no effect"),
        (["--recipe", "engm-fig6"], [], 1, "did you mean engm-fig5"),
        (["--recipe", "engm-fig5", "--parts", "tua"], [], 1, "did you mean tau"),
        (["--grid", "alpha=1,5"], ["--epochs", "many"], 2, "expected an integer"),
    ],
)
def test_wrong_words(tmp_path, made_up, capsys, words, train, status, message):
    assert sweep(tmp_path / "out", *words, train=train) == status
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_out(tmp_path, made_up, capsys):
    assert cli.main(["sweep", "--grid", "alpha=1,5"]) == 1
    assert "give --out" in capsys.readouterr().err
    (tmp_path / "mine.txt").touch()
    assert sweep(tmp_path, *GRID) == 1
    assert "holds no sweep" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["sweep", "--grid", "alpha=1,5", "--out", str(tmp_path / "new"), "--seeds", "1", "1"]) == 1
    assert "each of them once" in capsys.readouterr().err


def command(out):
    """A sweep in a process of its own, where no test has changed AutoAttack."""
    words = ["--grid", "optimizer=msgd,engm", "--seeds", "0", "1", "--", *TINY]
    return [sys.executable, "-m", "pyengm", "sweep", "--out", str(out), *words]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep to its end."""
    out = tmp_path_factory.mktemp("sweep") / "whole"
    subprocess.run(command(out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "count"), [("sweep.yaml", 1), ("*/*/metrics.jsonl", 1), ("*/*/results.json", 2)])
def test_a_killed_sweep_resumes_to_the_same_results(whole, tmp_path, pattern, count):
    """SIGKILL at the start, within the first run, and after the second."""
    out = tmp_path / "killed"
    process = subprocess.Popen(command(out), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob(pattern))) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob(pattern))) == count
    assert len(list(out.glob("*/*/results.json"))) < 4
    subprocess.run(command(out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    folders = [path.relative_to(whole) for path in whole.glob("*/seed-*")]
    assert len(folders) == 4
    for folder in folders:
        killed, other = RunFolder(out / folder), RunFolder(whole / folder)
        assert killed.metrics.read_text() == other.metrics.read_text()
        assert killed.read_results() == other.read_results()
    names = ("run", "seed", "state", "best pgd20", "last autoattack")
    assert [[row[name] for name in names] for row in rows(out)] == [
        [row[name] for name in names] for row in rows(whole)
    ]


RECIPE = ["--recipe", "toy-fig1", "--scale", "full"]


def test_a_run_that_others_wait_for_fails(tmp_path, made_up, toy_recipes, capsys):
    """The run that ranks the training images has written no log, so that no subset can be made of it."""
    out = tmp_path / "out"
    words = [*RECIPE, "--parts", "subset", "--out", str(out), "--", "--device", "cpu"]
    assert cli.main(["sweep", *words]) == 1
    assert [row["state"] for row in rows(out)] == ["complete", "failed"]
    assert "which ranks the training images" in rows(out)[1]["error"]
    assert "no run of this part is complete" in capsys.readouterr().out
    assert [path.name for path in (out / "comparison").iterdir()] == ["ranks"]
    assert len(made_up[0]) == 1


@pytest.mark.slow
def test_a_recipe_to_its_end(tmp_path, toy_recipes, capsys):
    """Runs that rank the training images, a run on a subset of them, and the analysis of a part; then all again."""
    out = tmp_path / "out"
    words = ["sweep", *RECIPE, "--out", str(out), "--", "--device", "cpu", "--quiet"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "the paper has 2 runs of each: --seeds 0 1" in printed
    assert "Fig. 1b. The paper: Something." in printed
    assert len(rows(out)) == 3  # the run of 1a is one of those of 1c
    (indices,) = (out / "subsets").iterdir()
    (ranking,) = (run for run in out.glob("*/seed-0") if (run / "instances").is_dir() and "0.1" in run.parent.name)
    logs = [np.load(path) for path in sorted((ranking / "instances").iterdir())]
    norms = sum(log["grad_norm"] for log in logs)
    smallest = np.sort(logs[0]["index"][np.argsort(norms, kind="stable")[: len(norms) // 2]])
    found = np.loadtxt(indices, dtype=int)
    # A tenth of the images is no whole number, so that the bound of five tenths is off by one image at most.
    assert len(set(found) ^ set(smallest)) <= 1
    configs = [TrainConfig.load(path) for path in out.glob("*/seed-0/config.yaml")]
    assert {(one.data.train_indices, one.schedule.epochs) for one in configs} == {(None, 2), (indices, 4)}
    assert {path.name for path in (out / "comparison").iterdir()} == {"ranks", "subset", "steps"}
    content = json.loads((out / "comparison/steps/table.json").read_text())
    assert (content["source"], content["figure"]) == ("Nobody, Fig. 1", "Fig. 1c")
    gaps = np.load(out / "comparison/steps/loss_gap.npz")
    assert sorted(name for name in gaps if name.endswith("/gap")) == ["step_size=0.1/gap", "step_size=0.2/gap"]
    before = (out / "comparison/steps/loss_gap.npz").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert (out / "comparison/steps/loss_gap.npz").stat().st_mtime_ns == before
