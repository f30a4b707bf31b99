"""The records of the methods: what reads them, and a method that is added by one file."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pyengm
from pyengm import methods
from pyengm.errors import ConfigError
from pyengm.methods import METHODS, Method, MethodInfo, PassCounts, register_method
from pyengm.training import RunFolder, TrainConfig, build_components, fit
from pyengm.training.builders import build_method
from pyengm.training.recipes import recipe_for

MARGIN_AT = '''"""Adversarial training on the margin loss."""

from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.losses import loss_named
from pyengm.data import Transform
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class MarginAT(AttackMethod):
    """L_i = CE(f(x'_i), y_i) + weight margin(f(x'_i), y_i), x' from PGD on the margin.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        weight: Weight of the margin in the losses.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".
    """

    info = MethodInfo(
        name="margin_at",
        title="PGD on the margin",
        passes=PassCounts(1, 1, 1, per_step=True),
        recipe={"lr": 0.03, "epochs": 40, "milestones": (30,), "method_options": ("weight=0.5",)},
        short_recipe=lambda run: {"lr": run.lr / 2},
        is_pgd=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        weight: float = 0.25,
        norm: str = "linf",
        bn: str = "eval",
    ):
        step_size = eps / 4 if step_size is None else step_size
        self.attack = PGD(eps, step_size, steps, norm=norm, loss="margin", bn=bn)
        self.threat, self.weight, self.margin = self.attack.threat, weight, loss_named("margin")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, key=key)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        logits = model(x_adv)
        return StepOutput(self.cross_entropy(logits, y) + self.weight * self.margin(logits, y), x_adv, logits)
'''
TINY = ["--model", "cnn4", "--width", "2", "--epochs", "1", "--batch-size", "60", "--autoattack-examples", "2"]


@pytest.fixture
def margin_at(tmp_path, monkeypatch):
    """The new file, found in a folder that is not the package's."""
    (tmp_path / "margin_at.py").write_text(MARGIN_AT)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield importlib.import_module("pyengm.methods.margin_at").MarginAT
    METHODS.pop("margin_at")
    del sys.modules["pyengm.methods.margin_at"]


def test_a_method_is_one_file(margin_at, tmp_path):
    config = TrainConfig.from_flat(data="cifar10", method="margin_at").resolve()
    assert (config.optimizer.lr, config.schedule.epochs, config.schedule.milestones) == (0.03, 40, (30,))
    assert config.optimizer.name == "msgd"
    assert build_method(config).weight == 0.5
    with pytest.raises(ConfigError, match=r"wight.*did you mean weight\?"):
        TrainConfig.from_flat(method="margin_at", method_options=("wight=1",))

    indices = tmp_path / "some.txt"
    indices.write_text("\n".join(map(str, range(60))))
    options = {"train_indices": indices, "model": "cnn4", "width": 2, "epochs": 1, "attack_steps": 2}
    config = TrainConfig.from_flat(method="margin_at", out=tmp_path / "run", **options).resolve()
    assert config.optimizer.lr == recipe_for("digits")["lr"] / 2
    run = RunFolder.create(config)
    fit(config, build_components(config), run)
    assert all(value.isfinite().all() for value in load_file(run.last).values())
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    method, model = margin_at(0.1, steps=2), build_components(config).model.cpu().train()
    optimizer = pyengm.MSGD(model.parameters())
    ((output, _),) = pyengm.train_step(method, model, optimizer, x, y)
    assert output.losses.shape == (4,)


def test_a_new_file_is_found_by_the_command_line(tmp_path):
    package = Path(pyengm.__file__).parent
    shutil.copytree(package, tmp_path / "pyengm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyengm" / "methods" / "margin_at.py").write_text(MARGIN_AT)

    def train(*options: str) -> str:
        command = [sys.executable, "-m", "pyengm", "train", "--method", "margin_at", *options]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        return run.stdout

    text = train("--help")
    assert "margin_at" in text
    assert re.search(r"weight.*Weight of the margin in the losses", text)
    train(*TINY, "--attack-steps", "2", "--method-options", "weight=0.125", "--out", "run")
    assert "weight=0.125" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "results.json").exists()


def test_names_are_taken_once():
    class NoName(methods.PGDAT):
        pass

    class Second(methods.PGDAT):
        info = MethodInfo(name="pgd_at")

    with pytest.raises(ConfigError, match="NoName has no name"):
        register_method(NoName)
    with pytest.raises(ConfigError, match="'pgd_at' of Second is taken by PGDAT"):
        register_method(Second)
    assert METHODS["pgd_at"] is methods.PGDAT


def test_every_method_is_registered_and_exported():
    assert all(name == kind.info.name for name, kind in METHODS.items())
    assert list(METHODS) == sorted(METHODS)
    assert all(getattr(methods, kind.__name__) is kind for kind in METHODS.values())
    assert Method.info == MethodInfo()


def test_counts_of_passes():
    counts = PassCounts(3, 2, 2, per_step=True, uncounted=1.5, remark="at most {}")
    assert (counts.of(), counts.of(1), counts.total(1)) == ((13, 12, 2), (4, 3, 2), 10.5)
    assert str(counts) == "at most 13 + 12 + 2"
    assert (PassCounts(3.5, 3, 2).total(7), str(PassCounts(3.5, 3, 2))) == (8.5, "3.5 + 3 + 2")


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_has_its_text(name):
    kind = METHODS[name]
    arguments = [] if name == "natural" else list(inspect.signature(kind).parameters)
    text = inspect.getdoc(kind).partition("Args:\n")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^    (\w+): ", text, re.MULTILINE)) == sorted(arguments)
