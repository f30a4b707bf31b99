"""A run as `pyengm train` leaves it, and its parts, trained once."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.reports import with_details

from pyengm.evaluation import DETAILS
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
    """The content of its results.json, as a version before the checks wrote it."""
    found = json.loads((trained / "results.json").read_text())
    return {name: value for name, value in found.items() if name not in DETAILS}


@pytest.fixture
def detailed(content) -> dict:
    """The same with everything that evaluations may hold."""
    return with_details(content)
