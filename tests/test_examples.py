"""The examples run, and train."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adamw_vit(capsys):
    pytest.importorskip("timm")
    history = load("adamw_vit").main(steps=25)
    assert len(history) == 25
    assert sum(history[-5:]) < 0.9 * sum(history[:5])
    assert "clipped" in capsys.readouterr().out
