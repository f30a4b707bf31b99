"""The tools of the benchmarks: a timed training run, and the plugin with which tests draw other values."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from tools import conv_forms, fresh_seed, launches

from pyengm.optim import ENGM, MSGD

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


def test_launches():
    """Every operation of a step belongs to a part, and those of the norms of a layer to that layer."""
    options = SimpleNamespace(model="cnn4", image_size=8, width=2)
    plain, clipped = (launches.count(options, "bn", kind) for kind in (MSGD, ENGM))
    layers = {name for name in clipped if name.startswith(".")}
    assert {name for name in clipped if clipped[name]} - layers <= {*launches.PARTS}
    assert {name for name in plain if plain[name]} == {
        "forward pass",
        "backward passes",
        "weights, checks",
        "optimiser",
        "size of the gradient, for logs",
    }
    assert len(layers) == 6  # two convolutions and their norms, two linear layers
    assert plain["forward pass"] == clipped["forward pass"] > 0
    assert min(clipped[name] for name in layers) > 0


def test_conv_forms():
    """Of ResNet-18 at 32x32 the late layers, of few pixels and many channels, take Gram matrices."""
    shapes = conv_forms.shapes("resnet18", 32)
    assert len(shapes) == 20
    gram = {shape.g for shape in shapes if conv_forms.costs(shape)[2] < conv_forms.costs(shape)[1]}
    assert gram >= {(256, 8, 8), (512, 4, 4)}
    assert not gram & {(64, 32, 32), (128, 16, 16)}
    assert min(conv_forms.time_of(shape, cost) for shape in shapes for cost in conv_forms.costs(shape)) > 0
