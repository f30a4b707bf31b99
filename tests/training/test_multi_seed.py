"""Runs of several seeds in one call, and what their results say together."""

import json
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
from rich.console import Console

from pyengm import cli
from pyengm.errors import ConfigError, NonFiniteError, PyengmError
from pyengm.evaluation import parallel, results_table
from pyengm.training import Interrupted, TrainConfig, multi_run, train, train_seeds
from pyengm.training.multi_seed import mean_and_spread
from pyengm.training.run_folder import RunFolder
from pyengm.utils import terminal

TINY = [
    "--model",
    "cnn4",
    "--width",
    "2",
    "--epochs",
    "1",
    "--attack-steps",
    "1",
    "--batch-size",
    "60",
    "--optimizer",
    "msgd",
]
TINY += ["--autoattack-examples", "2"]


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch):
    """AutoAttack with few queries, in this process; a terminal wide enough for whole sentences."""
    init = pyautoattack.AutoAttack.__init__

    def short(package, *args, **options):
        init(package, *args, **options)
        package.square.n_queries = 20

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    monkeypatch.setattr(terminal, "console", Console(width=200))


def fail(*args: str) -> None:
    """Runs a command that must end with an error: 1 from us, 2 where the options themselves do not parse."""
    try:
        code = cli.main(args)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)


def results(natural: float, pgd: float) -> dict:
    accuracies = {"natural": natural, "pgd20": pgd}
    return {
        "best": accuracies,
        "last": accuracies,
        "robust_overfitting": 100 * (natural - pgd),
        "threats": [{"norm": "linf", "eps": 0.2}],
        "images": {"all": 360, "autoattack": 100},
    }


class Trainer:
    """Stands for `train`: writes a run folder at once. stops, fails: seeds whose run is interrupted, or fails."""

    def __init__(self):
        self.trained: list[tuple[int, bool]] = []  # seed, whether resumed
        self.stops: set[int] = set()
        self.fails: dict[int, Exception] = {}

    def __call__(self, config: TrainConfig) -> dict:
        self.trained.append((config.run.seed, config.run.resume))
        run = RunFolder.open(config.run.out) if config.run.resume else RunFolder.create(config)
        if config.run.seed in self.stops:
            raise Interrupted("stopped after batch 3")
        if config.run.seed in self.fails:
            raise self.fails[config.run.seed]
        found = results(0.5 + 0.1 * config.run.seed, 0.25)
        run.save_results(found, "the table")
        return found


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(multi_run, "train", made)
    return made


class TestStatistics:
    def test_mean_and_sample_deviation(self):
        mean, spread = mean_and_spread([results(0.5, 0.1), results(0.7, 0.4), results(0.9, 0.1)])
        assert mean["best"] == pytest.approx({"natural": 0.7, "pgd20": 0.2})
        assert spread["best"] == pytest.approx({"natural": 0.2, "pgd20": 0.03**0.5})  # by hand: 0.04, 0.03 over n - 1
        assert mean["robust_overfitting"] == pytest.approx(50)
        assert spread["robust_overfitting"] == pytest.approx(700**0.5)
        assert mean["images"] == {"all": 360, "autoattack": 100}
        assert spread.keys() == {"best", "last", "robust_overfitting"}

    def test_one_run_has_no_spread(self):
        mean, spread = mean_and_spread([results(0.5, 0.1)])
        assert mean == results(0.5, 0.1)
        assert spread["best"] == {"natural": None, "pgd20": None}

    def test_values_that_are_no_numbers(self):
        mean, spread = mean_and_spread([results(0.5, float("nan")), results(0.7, 0.4)])
        assert np.isnan(mean["best"]["pgd20"])
        assert np.isnan(spread["best"]["pgd20"])

    def test_runs_that_were_measured_in_different_ways(self):
        other = results(0.5, 0.1)
        with pytest.raises(ConfigError, match="different ways: threats"):
            mean_and_spread([other, other | {"threats": []}])
        with pytest.raises(ConfigError, match="different ways: fgsm is not in all of them"):
            mean_and_spread([other, other | {"best": {**other["best"], "fgsm": 0.1}}])

    def test_the_table_shows_both(self, capsys):
        mean, spread = mean_and_spread([results(0.5, 0.1), results(0.7, 0.4)])
        Console(width=200).print(results_table(mean, "two", spread))
        text = capsys.readouterr().out
        assert "60.00 ± 14.14" in text
        assert "25.00 ± 21.21" in text
        assert "robust overfitting: 35.0 ± 7.1 %" in text


def test_each_run_is_an_ordinary_one(tmp_path, capsys):
    (tmp_path / "few.txt").write_text("\n".join(map(str, range(240))))
    tiny = [*TINY, "--train-indices", str(tmp_path / "few.txt")]
    out = tmp_path / "both"
    assert cli.main(["train", *tiny, "--seeds", "5", "3", "--out", str(out)]) == 0
    assert "mean ± sample standard deviation" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    found = [json.loads((out / f"seed-{seed}" / "results.json").read_text()) for seed in (5, 3)]
    assert summary["seeds"] == [5, 3]
    assert summary["failed"] == {}
    for name in ("natural", "pgd20", "autoattack_l2"):
        values = [result["last"][name] for result in found]
        assert summary["mean"]["last"][name] == pytest.approx(np.mean(values))
        assert summary["spread"]["last"][name] == pytest.approx(np.std(values, ddof=1))

    alone = tmp_path / "alone"
    assert cli.main(["train", "--config", str(out / "seed-3" / "config.yaml"), "--out", str(alone)]) == 0
    assert (alone / "config.yaml").read_text() == (out / "seed-3" / "config.yaml").read_text()
    assert (alone / "last.safetensors").read_bytes() == (out / "seed-3" / "last.safetensors").read_bytes()

    (out / "seed-3" / "results.json").unlink()  # as if the evaluation had been interrupted
    before = (out / "seed-5" / "results.json").stat().st_mtime_ns
    assert cli.main(["train", "--seeds", "5", "3", "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "seed-5" / "results.json").stat().st_mtime_ns == before


class TestCourse:
    def test_an_interrupted_call_goes_on(self, trainer, tmp_path, capsys):
        out = tmp_path / "out"
        trainer.stops = {1}
        assert cli.main(["train", "--seeds", "0", "1", "2", "--out", str(out)]) == Interrupted.exit_status
        text = capsys.readouterr().err
        assert "stopped in seed-1; 1 of 3 runs are complete" in text
        assert f"pyengm train --seeds 0 1 2 --out {out} --resume" in text
        assert not (out / "summary.json").exists()
        trainer.stops = set()
        assert cli.main(["train", "--seeds", "0", "1", "2", "--out", str(out), "--resume"]) == 0
        assert trainer.trained == [(0, False), (1, False), (1, True), (2, False)]
        summary = json.loads((out / "summary.json").read_text())
        assert summary["mean"]["best"]["natural"] == pytest.approx(0.6)
        assert summary["spread"]["best"]["natural"] == pytest.approx(0.1)

    def test_ctrl_c_outside_of_the_training(self, trainer, tmp_path, capsys):
        trainer.fails = {0: KeyboardInterrupt()}
        assert cli.main(["train", "--seeds", "0", "--out", str(tmp_path / "out")]) == Interrupted.exit_status
        assert "stopped in seed-0" in capsys.readouterr().err

    @pytest.mark.parametrize("error", [NonFiniteError("the loss is nan"), RuntimeError("out of memory")])
    def test_a_failed_run_leaves_the_others(self, error, trainer, tmp_path, capsys):
        trainer.fails = {1: error}
        out = tmp_path / "out"
        assert cli.main(["train", "--seeds", "0", "1", "2", "--out", str(out)]) == 1
        assert f"seed-1 failed: {several_text(error)}" in capsys.readouterr().out
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["seeds"], summary["failed"]) == ([0, 2], {"seed-1": several_text(error)})

    def test_all_failed(self, trainer, tmp_path):
        trainer.fails = {seed: NonFiniteError("the loss is nan") for seed in (0, 1)}
        config = TrainConfig.from_flat(seeds=(0, 1), out=tmp_path / "out").resolve()
        with pytest.raises(PyengmError, match="every run failed: seed-0: the loss is nan; seed-1"):
            train_seeds(config)

    def test_a_torchrun_job_goes_on_with_its_own(self, trainer, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        command = ["train", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
        assert cli.main(command) == 0
        assert cli.main(command) == 0
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
        assert cli.main(command) == 1

    def test_more_seeds_later(self, trainer, tmp_path):
        out = str(tmp_path / "out")
        assert cli.main(["train", "--seeds", "0", "--out", out]) == 0
        assert cli.main(["train", "--seeds", "0", "1", "--out", out, "--resume"]) == 0
        assert trainer.trained == [(0, False), (1, False)]

    def test_the_folder_without_out(self, trainer, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["train", "--seeds", "0", "1"]) == 0
        assert Path("runs/digits-pgd_at-engm-001/seed-1/config.yaml").is_file()


def several_text(error: Exception) -> str:
    """Messages of failures: errors of pyengm as they are, others with their class."""
    return str(error) if isinstance(error, PyengmError) else f"{type(error).__name__}: {error}"


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--seeds", "0", "0"], "seeds are (0, 0); expected each of them once"),
            (["--seeds", "-1"], "seed is -1; expected 0"),
            (["--seeds", "0", "--out", "OUT"], "exists and is not overwritten"),
            (["--out", "OUT", "--resume"], "it holds the runs of several seeds: give --seeds too"),
            (["--seeds", "7", "--out", "OUT", "--resume"], "holds no run of the seeds 7"),
            (["--seeds", "0", "--out", "OUT", "--resume", "--lr", "3"], "keeps its options; lr differ"),
            (["--seeds", "0", "--out", "OUT", "--resume", "--eps", "0.1"], "keeps its options; eps differ"),
        ],
    )
    def test_options(self, options, message, trainer, tmp_path, capsys):
        out = str(tmp_path / "out")
        assert cli.main(["train", "--seeds", "0", "--out", out]) == 0
        fail("train", *(out if option == "OUT" else option for option in options))
        assert message in " ".join(capsys.readouterr().err.split())
        assert trainer.trained == [(0, False)]

    def test_errors_of_the_options_leave_nothing_behind(self, tmp_path, capsys):
        out = tmp_path / "out"
        assert cli.main(["train", "--data", "nowhere", "--seeds", "0", "1", "--out", str(out)]) == 1
        assert capsys.readouterr().err.count("unknown data set 'nowhere'") == 1
        assert not out.exists()

    def test_train_makes_one_run(self):
        with pytest.raises(ConfigError, match="use train_seeds"):
            train(TrainConfig.from_flat(seeds=(0, 1)))

    def test_damaged_results(self, trainer, tmp_path, capsys):
        out = tmp_path / "out"
        assert cli.main(["train", "--seeds", "0", "1", "--out", str(out)]) == 0
        (out / "seed-0" / "results.json").write_text('{"best": ')
        assert cli.main(["train", "--seeds", "0", "1", "--out", str(out), "--resume"]) == 1
        assert "results.json is damaged" in capsys.readouterr().out
