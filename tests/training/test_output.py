"""What a run prints, and where the output goes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyengm import cli
from pyengm.evaluation import DETAILS
from pyengm.training import RunFolder, TrainConfig, train

TINY = ["--model", "cnn4", "--width", "2", "--attack-steps", "1", "--batch-size", "30", "--autoattack-examples", "2"]
TINY += ["--no-eval-both-threats"]
PYENGM = [sys.executable, "-m", "pyengm"]


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[2]))
    return os.environ


def test_a_reader_that_leaves_stops_the_run_as_a_signal_does(first_digits, tmp_path, environment):
    words = ["train", *TINY, "--train-indices", str(first_digits), "--epochs", "300", "--out", "run"]
    with subprocess.Popen(
        [*PYENGM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()  # as `| head -3` does
        error = process.stderr.read()
    assert lines[0] == "run folder: run\n"
    assert lines[1].startswith("epoch ")
    assert process.returncode == 75, error
    assert "stopped after batch " in error
    assert "resume with: pyengm train --out run --resume" in error
    assert "Traceback" not in error
    assert RunFolder(tmp_path / "run").checkpoints(2).complete()


def test_a_reader_of_the_help_that_leaves(environment):
    shell = f"{sys.executable} -m pyengm train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("usage: pyengm train")
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert done.stderr == ""


def test_quiet(first_digits, tmp_path, capsys):
    words = [*TINY, "--train-indices", str(first_digits), "--epochs", "1", "--out", str(tmp_path / "run"), "--quiet"]
    assert cli.main(["train", *words]) == 0
    text = capsys.readouterr().out
    assert "AutoAttack" in text
    assert "epoch" not in text
    assert "run folder" not in text


def test_dry_run(first_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "--train-indices", str(first_digits), "--epochs", "300", "--dry-run"]
    assert cli.main(["train", *words]) == 0
    text = capsys.readouterr().out
    assert "epochs: 300" in text
    assert "images: 108 to train on, 12 held out, 360 to test, of 1x8x8, 10 classes" in text
    assert "training: 300 epochs of 4 steps, about 0:0" in text
    assert "evaluation: pgd20, autoattack under L-infinity, eps = 0.2" in text
    assert "run folder: runs/digits-pgd_at-engm-001, at most " in text
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["train", *words, "--seeds", "1", "2", "3"]) == 0
    assert "training: 3 runs of 300 epochs" in capsys.readouterr().out


def test_a_full_disk_is_found_before_the_first_epoch(tiny, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("pyengm.training.disk_space.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match=r"the run needs up to [\d.]+ kB in .*, and 1 kB are free: make room"):
        train(tiny.override(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("guard", ["", 'if __name__ == "__main__":\n    '])
def test_a_script_trains_once(first_digits, tmp_path, environment, guard):
    (tmp_path / "script.py").write_text(
        "from pyengm.training import TrainConfig, train\nprint('begun')\n"
        f"{guard}results = train(TrainConfig.from_flat(train_indices={str(first_digits)!r}, model='cnn4', width=2, "
        "epochs=1, attack_steps=1, batch_size=30, autoattack_examples=2))\n"
        f"{guard}print(sorted(results))\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("begun") == 1
    assert done.stdout.splitlines()[-1] == str(
        sorted(["best", "format", "images", "last", "robust_overfitting", "threats", *DETAILS])
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-pgd_at-engm-001"]


def test_options_are_resolved_by_train(first_digits, tmp_path):
    given = TrainConfig.from_flat(
        train_indices=str(first_digits), model="cnn4", width=2, epochs=1, attack_steps=1, batch_size=30
    )
    given = given.override(autoattack_examples=2, eval_both_threats=False, out=str(tmp_path / "run"), quiet=True)
    assert train(given)["threats"] == [{"norm": "linf", "eps": 0.2}]
    assert TrainConfig.load(tmp_path / "run/config.yaml").optimizer.name == "engm"
