"""The examples run, and train."""

import importlib

import pytest


def test_adamw_vit(capsys):
    pytest.importorskip("timm")
    history = importlib.import_module("pyengm.examples.adamw_vit").main(steps=25)
    assert len(history) == 25
    assert sum(history[-5:]) < 0.9 * sum(history[:5])
    assert "clipped" in capsys.readouterr().out
