"""The tools of the benchmarks: a timed training run, and the plugin with which tests draw other values."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from tools import fresh_seed

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_timed_training(tmp_path):
    (tmp_path / "indices").write_text("\n".join(map(str, range(30))))
    out = tmp_path / "run.json"
    options = ["--epochs", "2", "--select-on", "none", "--attack-steps", "1", "--precision", "bf16", "--device", "cpu"]
    options += ["--train-indices", str(tmp_path / "indices"), "--model", "cnn4", "--width", "4"]
    path = os.pathsep.join(entry for entry in (str(BENCH), os.environ.get("PYTHONPATH")) if entry)
    command = [sys.executable, "-m", "tools.timed_training", out, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path})
    run = json.loads(out.read_text())
    assert len(run["epoch_seconds"]) == len(run["metrics"]) == 2
    assert all(0 < seconds < 60 for seconds in run["epoch_seconds"])
    assert (run["images"], run["test_images"], run["options"]["attack_steps"]) == (30, 360, 1)
    assert 0 <= run["pgd20"] <= run["natural"] <= 1


def test_fresh_seed(monkeypatch):
    """A fixed seed of a test gives the values of another seed, the same ones in every run with that fresh seed."""
    expected = torch.rand(3, generator=torch.Generator().manual_seed(2 + 70))
    for name in ("Generator", "manual_seed"):
        monkeypatch.setattr(torch, name, getattr(torch, name))  # restores the old one in the end
    fresh_seed.pytest_configure(SimpleNamespace(getoption=lambda name: 70))
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(2)), expected)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(3), expected)
