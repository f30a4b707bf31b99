"""`pyengm evaluate` for models made elsewhere, and the results that it leaves in run folders."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.evaluation import CPU
from rich.console import Console
from safetensors.torch import save_file

from pyengm import cli
from pyengm.attacks import ThreatModel
from pyengm.data import load
from pyengm.evaluation import evaluate
from pyengm.models import build, save_checkpoint
from pyengm.models.checkpoint import CheckpointInfo
from pyengm.training import RunFolder, TrainConfig
from pyengm.utils import terminal

FEW = ["--data", "digits", "--autoattack-examples", "2", "--threat", "linf", "--eps", "0.02"]
WIDTH = ["--width", "4"]
MODULE = """
import torch
from torch import nn
from pyengm.models import build
print("the module runs")
def make_model(num_classes, in_channels, image_size):
    torch.manual_seed(0)
    return build("cnn4", num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=4)
class Returns(nn.Module):
    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap
    def forward(self, x):
        return self.wrap(self.net(x))
def of_dict(num_classes, in_channels, image_size):
    return Returns(make_model(num_classes, in_channels, image_size), lambda z: {"logits": z})
def of_tuple(num_classes, in_channels, image_size):
    return Returns(make_model(num_classes, in_channels, image_size), lambda z: (0, z))
def make_datasets():
    from pyengm.data import load
    return load("digits", "train"), load("digits", "test")
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """A working directory with a module of the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "console", Console(width=150))
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_module.py").write_text(MODULE)
    yield
    sys.modules.pop("my_module", None)


def network(seed=0):
    torch.manual_seed(seed)
    return build("cnn4", num_classes=10, in_channels=1, image_size=8, width=4).eval()


def run(*args):
    """The results of a command that must succeed."""
    out = Path(f"out-{len(list(Path().glob('out-*')))}.json")
    assert cli.main(["evaluate", *map(str, args), "--out", str(out)]) == 0
    return json.loads(out.read_text())


def fails(capsys, *args):
    """The message of a command that must end with status 1 or 2 and without a traceback."""
    try:
        status = cli.main(["evaluate", *map(str, args)])
    except SystemExit as stop:
        status = stop.code
    assert status in (1, 2)
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def expected():
    """Results of the network of seed 0."""
    return evaluate(
        network(), load("digits", "test"), threat=ThreatModel("linf", 0.02), device=CPU, autoattack_examples=2
    )


def test_a_function_of_the_user_with_weights(expected):
    torch.save({"state_dict": {"module." + name: t for name, t in network().state_dict().items()}}, "w.pth")
    found = run("my_module:make_model", "--weights", "w.pth", *FEW)
    assert found["w"] == expected
    assert found["evaluation"] == {
        "target": "my_module:make_model",
        "data": "digits",
        "split": "test",
        "protocol": "engm",
        "attacks": ["pgd20", "autoattack"],
        "seed": 0,
        "weights": "w.pth",
    }
    assert run("my_module:make_model", *FEW)["make_model"] == expected


def test_places_of_the_logits(expected, capsys):
    assert run("my_module:of_dict", *FEW)["of_dict"] == expected
    assert run("my_module:of_tuple", "--output", "1", *FEW)["of_tuple"] == expected
    assert "got a tuple of 2; wrap the model: " in (text := fails(capsys, "my_module:of_tuple", *FEW))
    assert "--output" in text


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_names_with_weights(name, expected):
    state = {name: t.contiguous() for name, t in network().state_dict().items()}
    (torch.save if name == "w.pt" else save_file)(state, name)
    assert run("cnn4", "--weights", name, *WIDTH, *FEW)["w"] == expected


def test_timm_with_weights_and_normalization():
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=10, in_chans=1)
    torch.save({"state_dict": theirs.state_dict(), "state_dict_ema": network().state_dict()}, "w.pt")
    found = run("timm:resnet18", "--weights", "w.pt", "--mean", "0.5", "--std", "0.25", *FEW)
    natural = evaluate(
        lambda x: theirs.eval()((x - 0.5) / 0.25), load("digits", "test"), attacks=[], threat=ThreatModel("linf", 0.1)
    )
    assert found["w"]["natural"] == natural["natural"]


def test_an_average_beside_the_weights(expected, capsys):
    torch.save({"model": network().state_dict(), "model_ema": network(1).state_dict()}, "images.pt")
    found = run("cnn4", "--weights", "images.pt", *WIDTH, *FEW)
    assert found["model images"] == expected  # "images" are the numbers of images
    assert "model is used (--weights-entry" in " ".join(capsys.readouterr().out.split())
    found = run("cnn4", "--weights", "images.pt", "--weights-entry", "model_ema", *WIDTH, *FEW)
    assert found["model images"] != expected


@pytest.fixture
def run_folder():
    """A run folder as a training leaves it, of the network of seed 0."""
    config = TrainConfig.from_flat(data="digits", model="cnn4", width=4, out=Path("run"), autoattack_examples=2)
    folder = RunFolder.create(config.resolve())
    for path in (folder.best, folder.last):
        save_checkpoint(path, network(), describe())
    return folder


def test_results_go_to_the_run_folder(run_folder, expected, capsys):
    run_folder.results.write_text("of the training")
    for number in (1, 2):
        assert cli.main(["evaluate", "run", "--threat", "linf", "--attacks", "fgsm"]) == 0
        path = run_folder.path / "evaluations" / f"00{number}.json"
        assert f"results: {Path('run/evaluations')}/00{number}.json" in capsys.readouterr().out
        found = json.loads(path.read_text())
        assert {name: found["best"][name] for name in expected} == expected
        assert found["evaluation"]["attacks"] == ["fgsm", "pgd20", "autoattack"]
        assert "AutoAttack" in path.with_suffix(".txt").read_text()
    assert run_folder.results.read_text() == "of the training"
    assert run("run", "--threat", "linf")["last"] == expected  # --out too
    assert len(list((run_folder.path / "evaluations").glob("*.json"))) == 3


def test_a_run_folder_and_its_files_give_the_same_results(run_folder, expected):
    for target in ("run", "run/best.safetensors", "run/last.safetensors"):
        found = run(target, "--threat", "linf")
        assert found["images"] == {"all": 360, "autoattack": 2}
        assert found["last" if target == "run" else Path(target).stem] == expected


def test_a_file_on_its_own_is_attacked_on_all_images(run_folder, monkeypatch):
    asked = []

    def stopped(*arguments, **options):
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("pyengm.cli.evaluate.evaluate_with_progress", stopped)
    run_folder.best.rename("best.safetensors")
    for target in (["best.safetensors"], ["my_module:make_model", "--data", "digits"]):
        assert cli.main(["evaluate", *target]) == 75
    assert [options["autoattack_examples"] for options in asked] == [None, None]


def test_a_run_folder_that_cannot_be_written_to(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to every folder
    assert cli.main(["evaluate", "run", "--threat", "linf"]) == 0
    assert "the results are not kept; --out FILE keeps them" in capsys.readouterr().out
    assert not (run_folder.path / "evaluations").exists()


def describe(data="digits", **changes):
    options = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 4} | changes
    return CheckpointInfo(options, data, tuple("0123456789"), "linf", 0.02, 0)


def test_code_that_files_name_needs_trust(capsys):
    by_function = describe(name="my_module:make_model", width=None)
    for target, info in (("a.safetensors", by_function), ("b.safetensors", describe(data="my_module:make_datasets"))):
        save_checkpoint(Path(target), network(), info)
        text = fails(capsys, target, "--threat", "linf", "--autoattack-examples", "2")
        assert f"{target} names code that would be run" in text
        assert "--trust-config" in text
        assert "my_module" not in sys.modules
    found = run("a.safetensors", "--trust-config", *FEW)
    options = {"attacks": [], "threat": ThreatModel("linf", 0.02)}
    assert found["a"]["natural"] == evaluate(network(), load("digits", "test"), **options)["natural"]


WRONG = {
    "no such file": (
        ["none"],
        "there is no checkpoint none, nor a run folder; .* give --data",
    ),
    "weights without a model": (["w.pt", *FEW], "no description of its model: name the model .*MODEL --weights w.pt"),
    "a name without weights": (["timm:resnet18", *FEW], "timm:resnet18 alone has random weights"),
    "a page": (["cnn4", "--weights", "page.pt", *FEW], "page.pt is damaged or no safetensors file"),
    "no weights": (["cnn4", "--weights", "none.pt", *FEW], "there is no checkpoint none.pt"),
    "other weights": (["cnn4", "--weights", "w.pt", *FEW], r"has shape \(\d+, .*the model's has"),
    "a pickled model": (["cnn4", "--weights", "whole.pt", *FEW], "could run code; save its weights alone"),
    "no such entry": (
        ["cnn4", *WIDTH, "--weights", "w.pt", "--weights-entry", "x", *FEW],
        r"no weights of this model as 'x'; as these it has: \(the whole file\)",
    ),
    "options of names": (["c.safetensors", "--width", "4", "--output", "0"], "--output, --width would have no effect"),
    "a misspelt function": (["my_module:make_mode", *FEW], r"did you mean make_model\?"),
    "a misspelt module": (["my_modul:make_model", *FEW], "there is no module 'my_modul'"),
    "an unknown model": (["resnet81", "--weights", "w.pt", *FEW], "Close matches: resnet18"),
    "no mean": (["cnn4", "--weights", "w.pt", "--std", "0.5", *FEW], "give both mean and std or neither"),
    "the zoo": (["robustbench:Standard", *FEW], "zoo has models for cifar10|robustbench is not installed"),
}


@pytest.mark.parametrize(("args", "says"), WRONG.values(), ids=WRONG)
def test_wrong_input(args, says, capsys):
    torch.save(network().state_dict(), "w.pt")
    torch.save(network(), "whole.pt")
    Path("page.pt").write_text("<html>")
    save_checkpoint(Path("c.safetensors"), network(), describe())
    before = sorted(path.name for path in Path().iterdir())
    text = fails(capsys, *args)
    assert re.search(says, text), text
    assert "Traceback" not in text
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


@pytest.mark.slow
def test_the_working_directory_is_importable_from_the_command():
    torch.save(network().state_dict(), "w.pt")
    command = [Path(sys.executable).parent / "pyengm", "evaluate", "my_module:make_model", "--weights", "w.pt", *FEW]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
