"""`pyengm analyze` on a model of digits: its files, their description, and interrupted analyses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pyengm import cli
from pyengm.analysis import gradient_statistics
from pyengm.attacks import PGD, ThreatModel
from pyengm.cli.analyses import ANALYSES, ANALYSES_ALONE
from pyengm.cli.analysis_attacks import parse_attack
from pyengm.data import load
from pyengm.errors import ConfigError
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import CheckpointInfo, build, save_checkpoint

FEW = ["--examples", "40", "--batch-size", "10", "--device", "cpu"]


def save_model(path, seed, epoch):
    torch.manual_seed(seed)
    options = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 2}
    info = CheckpointInfo(options, "digits", tuple(map(str, range(10))), "linf", 0.1, epoch)
    path.parent.mkdir(exist_ok=True)
    model = build(**options)
    save_checkpoint(path, model, info)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path):
    save_model(tmp_path / "model.safetensors", 0, 4)
    return tmp_path / "model.safetensors"


def made(checkpoint, name, *options, out=None):
    out = checkpoint.parent / "out" if out is None else out
    assert cli.main(["analyze", str(checkpoint), name, "--out", str(out), *FEW, *options]) == 0
    return dict(np.load(out / f"{name}.npz")), json.loads((out / f"{name}.json").read_text())


def test_the_arrays_are_those_of_the_function(checkpoint):
    arrays, description = made(
        checkpoint, "gradient_statistics", "--attack", "pgd:steps=3,step_size=0.04", "--seed", "5"
    )
    data = load("digits", "test")
    data = data.subset(evenly_spread(len(data), 40))
    model = save_model(checkpoint.parent / "again.safetensors", 0, 4)
    images = data.images.float() / 255
    options = {"attack": PGD(0.1, 0.04, 3), "batch_size": 10, "seed": 5}
    expected = gradient_statistics([(5, model)], images, data.labels, **options)
    # The command takes the faster memory format, whose sums in float32 are in another order.
    np.testing.assert_allclose(arrays["norms"], expected.norms, rtol=1e-5)
    assert arrays["epochs"].tolist() == [5]
    assert description["scalars"]["sigma2"] == pytest.approx(expected.sigma2[0], rel=1e-4)
    assert description["data"]["examples"] == 40
    assert description["configuration"]["seed"] == 5
    assert description["environment"]["command"]
    assert len(description["models"][0]["sha256"]) == 64
    out = checkpoint.parent / "out"
    assert (out / "gradient_statistics.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "gradient_statistics.svg").read_bytes()
    assert not (out / ".parts").exists()


@pytest.mark.parametrize(
    "name", sorted(set(ANALYSES) - {"instances", "weight_plane", "smoothness", "accuracy_curve", *ANALYSES_ALONE})
)
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_every_analysis_runs(checkpoint, name, bn):
    arrays, description = made(checkpoint, name, "--bn", bn, "--examples", "20")
    assert arrays
    assert description["analysis"] == name
    assert description["configuration"]["bn"] == bn


def test_an_analysis_of_no_model_needs_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["analyze", "toy_surface"]) == 0
    assert np.load("analysis/toy_surface.npz")["linear l2/loss"].shape == (161, 161)
    description = json.loads(Path("analysis/toy_surface.json").read_text())
    assert description["environment"]["command"]
    assert "models" not in description
    assert cli.main(["analyze", "toy_surface", "fosc_bins"]) == 1
    assert "expected a run folder" in capsys.readouterr().err


def test_images_of_given_positions(checkpoint, tmp_path):
    rows, plain = [3, 5, 8], ["--attack", "none"]  # random starts depend on the place in the analysis
    (tmp_path / "rows.txt").write_text("".join(f"{row}\n" for row in rows))
    arrays, description = made(checkpoint, "gradient_statistics", "--indices", str(tmp_path / "rows.txt"), *plain)
    whole, _ = made(checkpoint, "gradient_statistics", "--examples", "9999", *plain, out=tmp_path / "whole")
    # Sums in float32 are in another order in batches of other sizes.
    np.testing.assert_allclose(arrays["norms"][0], whole["norms"][0][rows], rtol=1e-4)
    assert description["data"]["examples"] == 3
    assert cli.main(["analyze", str(checkpoint), "--indices", str(tmp_path / "none.txt"), "--device", "cpu"]) == 1


def test_targets_of_one_name_are_told_apart(tmp_path):
    """Runs of several seeds have folders such as a/seed-0 and b/seed-0."""
    targets = []
    for seed, folder in enumerate(("a", "b")):
        save_model(tmp_path / folder / "model.safetensors", seed, 4)
        targets.append(str(tmp_path / folder / "model.safetensors"))
    words = [*targets, "cross_robustness", "loss_gap", "--attack", "pgd:steps=2", "--out", str(tmp_path / "out")]
    assert cli.main(["analyze", *words, *FEW]) == 0
    found = np.load(tmp_path / "out" / "cross_robustness.npz")
    assert found["models"].tolist() == ["a/model, epoch 5", "b/model, epoch 5"]
    gap = np.load(tmp_path / "out" / "loss_gap.npz")
    assert np.abs(gap["gap"]).max() > 0.01
    alone, _ = made(Path(targets[0]), "cross_robustness", "--attack", "pgd:steps=2", out=tmp_path / "alone")
    np.testing.assert_array_equal(found["verdicts"][0, :2], alone["verdicts"][0])


def test_a_target_that_comes_twice(checkpoint, capsys):
    assert cli.main(["analyze", str(checkpoint), str(checkpoint), "cross_robustness", "--device", "cpu"]) == 1
    assert "expected different targets" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight_plane", "smoothness", "accuracy_curve"])
def test_long_analyses_run(checkpoint, name):
    arrays, _ = made(checkpoint, name, "--examples", "20", "--attack", "pgd:steps=2")
    assert arrays


def test_what_is_there_is_kept(checkpoint, capsys):
    made(checkpoint, "fosc_trajectory")
    path = checkpoint.parent / "out" / "fosc_trajectory.npz"
    before = path.stat().st_mtime_ns
    made(checkpoint, "fosc_trajectory")
    assert path.stat().st_mtime_ns == before
    words = ["analyze", str(checkpoint), "fosc_trajectory", "--out", str(path.parent), *FEW]
    assert cli.main([*words, "--seed", "1"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    save_model(checkpoint, 3, 4)  # the same name with other weights
    assert cli.main(words) == 1
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("parts", [0, 3, 20])
def test_a_killed_analysis_goes_on_to_the_same_arrays(checkpoint, tmp_path, parts):
    name = "fosc_distribution"
    whole, _ = made(checkpoint, name, "--examples", "300", out=tmp_path / "whole")
    out = tmp_path / "killed"
    words = ["analyze", str(checkpoint), name, "--out", str(out), *FEW, "--examples", "300"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "pyengm", *words], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and len(list(out.glob(".parts/*/part-*.npz"))) < parts:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts == 0 or list(out.glob(".parts/*/part-*.npz")) or (out / f"{name}.json").exists()
    assert cli.main(words) == 0
    resumed = dict(np.load(out / f"{name}.npz"))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key])


def test_attacks_as_texts():
    trained = ThreatModel("linf", 0.1)
    pgd = parse_attack("pgd:eps=8/255,step_size=2/255,steps=7,loss=margin", trained).create("train")
    assert (pgd.threat.eps, pgd.step_size, pgd.steps, pgd.bn) == (8 / 255, 2 / 255, 7, "batch_stats")
    assert parse_attack("none", trained).create("eval") is None
    assert parse_attack("pgd", trained).options["step_size"] == 0.025
    for text, message in {
        "pdg": "did you mean",
        "pgd:step=2": "unknown option",
        "fgsm:steps=2": "those of fgsm",
        "pgd:steps=two": "expected an integer",
        "pgd:steps=0": "steps",
        "pgd:norm=l2": "eps beside norm",
        "pgd:steps=1,steps=2": "twice",
        "pgd:eps=0.1,0.2": "one radius",
        "pgd:on=surrogate": "on the model itself",
        "cw": "expected none, fgsm, pgd",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_attack(text, trained)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gradient_statistics"], "expected a run folder or a checkpoint"),
        (["CHECKPOINT", "gradient_statistic"], "did you mean gradient_statistics"),
        (["CHECKPOINT", "fosc_bins", "--attack", "fgsm"], "FOSC is that of PGD"),
        (["CHECKPOINT", "input_plane", "--attack", "none"], "needs an attack"),
        (["CHECKPOINT", "instances"], "takes one run folder"),
    ],
)
def test_wrong_words(checkpoint, capsys, words, message):
    words = [str(checkpoint) if word == "CHECKPOINT" else word for word in words]
    assert cli.main(["analyze", *words, "--device", "cpu"]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
