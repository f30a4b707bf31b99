"""A run as `pyengm train` leaves it, and its parts, trained once."""

import json
import shutil
from pathlib import Path

import pytest

from pyengm.training import TrainConfig, train

TINY = {"model": "cnn4", "width": 4, "attack_steps": 1, "batch_size": 64, "optimizer": "engm", "device": "cpu"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run on digits of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "first-run"
    train(TrainConfig.from_flat(**TINY, epochs=3, autoattack_examples=4, quiet=True, cpu_threads=1, out=out))
    return out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "first-run"))


@pytest.fixture
def content(trained) -> dict:
    """The content of its results.json."""
    return json.loads((trained / "results.json").read_text())


@pytest.fixture
def detailed(content) -> dict:
    """Results with everything that evaluations may hold."""
    block = {
        "images": 50,
        "checks": [
            {"name": "steps", "title": "more steps are not weaker", "passed": True, "figure": "41.0 % and 40.0 %"},
            {"name": "zero", "title": "accuracy reaches 0", "passed": False, "figure": "12.0 % at eps = 0.5"},
        ],
        "curve": {"eps": [0.0, 0.1, 0.2], "accuracy": [0.9, 0.6, 0.3]},
    }
    empty = {"images": 0, "checks": [], "curve": {"eps": [], "accuracy": []}, "reason": "too few images"}
    for model in ("best", "last"):
        natural = content[model]["natural"]
        content[model] |= {f"pgd:steps=5,loss=ce,norm=linf,eps={eps}": natural - 2 * eps for eps in (0.05, 0.1, 0.15)}
        content[model]["deepfool"] = 0.8421
    content["standard_errors"] = {"best": {"natural": (natural * (1 - natural) / 90) ** 0.5}}
    content["trust"] = {"best": {"linf": block, "l2": empty}}
    warning = {"model": "best", "threat": {"norm": "linf", "eps": 0.2}, "attack": "AutoAttack"}
    content["warnings"] = [{**warning, "kind": "softmax_output", "text": "the outputs are <probabilities>"}]
    return content
