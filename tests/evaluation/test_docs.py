"""The Python examples of docs/evaluation.md run."""

import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers.evaluation import info
from torch import nn

import pyengm
from pyengm.attacks import ThreatModel
from pyengm.evaluation import evaluate
from pyengm.models import build, save_checkpoint

DOCS = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if DOCS.is_file() else []


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()


class OfRobustBench(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.network = network()

    def forward(self, x):
        return self.network(x - self.mean)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the examples find: a working directory with files, a model, images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), "timm_resnet18.pt")
    torch.save({"state_dict": network().state_dict()}, "weights.pt")
    Path("my_module.py").write_text("from test_docs import network\ndef make_model():\n    return network()\n")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    x, y = torch.rand(10, 3, 32, 32), torch.arange(10)
    yield {"model": network(), "network": network(), "x": x, "y": y, "robustbench_model": OfRobustBench(),
           "pyengm": pyengm, "torchvision": torchvision, "evaluate": evaluate, "ThreatModel": ThreatModel}  # fmt: skip
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(example, names):
    options = {"name": "torchvision:resnet18" if "torchvision.models" in example else "cnn4", "num_classes": 10}
    torch.manual_seed(0)
    made = build(**options, in_channels=3, image_size=32)
    details = {**options, "in_channels": 3, "image_size": 32, "width": None}
    save_checkpoint(Path("best.safetensors"), made, info(**details))
    if "torch.onnx" in example:
        pytest.importorskip("onnxscript")
    exec(example, names)
    if "results" in names:
        assert 0 <= names["results"]["pgd20"] <= names["results"]["natural"] <= 1
    if "torch.export" in example:
        y = torch.rand(5, 3, 32, 32)
        torch.testing.assert_close(names["program"].module()(y), made.eval()(y), rtol=1e-4, atol=1e-5)
    if "load_state_dict" in example:
        assert names["model"].fc.weight.equal(made.fc.weight)


def test_there_are_examples():
    assert len(EXAMPLES) >= 7 or not DOCS.is_file()
