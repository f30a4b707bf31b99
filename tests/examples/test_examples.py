"""The examples run, and train."""

import importlib

import pytest
import torch
from torch.nn import functional as F

import pyengm
from pyengm.examples.problem import digits, network


def test_adamw_vit(capsys):
    pytest.importorskip("timm")
    history = importlib.import_module("pyengm.examples.adamw_vit").main(steps=25)
    assert len(history) == 25
    assert sum(history[-5:]) < 0.9 * sum(history[:5])
    assert "clipped" in capsys.readouterr().out


@pytest.mark.parametrize("method", [None, pyengm.methods.Natural()])
def test_timm_mixup(method, capsys):
    pytest.importorskip("timm")
    example = importlib.import_module("pyengm.examples.timm_mixup")
    trained, fresh = example.main(method), network()
    x, y = digits().tensors
    with torch.no_grad():
        losses = [F.cross_entropy(model.eval()(x), y).item() for model in (fresh, trained)]
    assert losses[1] < 0.99 * losses[0]  # an epoch of 16 steps, of adversarial training too
    assert "clipped" in capsys.readouterr().out
