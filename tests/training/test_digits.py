"""What the main job promises, on the real digits: pytest -m slow tests/training/test_digits.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def train(out: Path, *options: str) -> tuple[dict, float]:
    """Results and seconds of `pyengm train` in a process of its own."""
    start = time.monotonic()
    command = [sys.executable, "-c", "import sys; from pyengm.cli import main; sys.exit(main())", "train", *options]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=out.parent, env=os.environ | {"COLUMNS": "100"})
    return json.loads((out / "results.json").read_text()), time.monotonic() - start


@pytest.fixture(scope="module")
def robust(tmp_path_factory) -> dict:
    results, seconds = train(tmp_path_factory.mktemp("robust") / "run")
    print(f"the main job took {seconds:.0f} s")
    return results


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_adversarial_training_resists(robust, checkpoint):
    accuracies = robust[checkpoint]
    assert accuracies["pgd20"] >= 0.70
    assert accuracies["autoattack"] >= 0.50
    assert accuracies["autoattack"] <= accuracies["pgd20_on_autoattack_examples"]
    assert accuracies["autoattack_l2"] <= accuracies["pgd20_on_autoattack_examples_l2"]
    assert robust["images"]["autoattack"] == 100


def test_natural_training_does_not(tmp_path):
    results, _ = train(tmp_path / "run", "--method", "natural", "--optimizer", "msgd")
    assert results["best"]["natural"] > 0.95
    assert results["best"]["pgd20"] < 0.10
    assert results["last"]["pgd20"] < 0.10
