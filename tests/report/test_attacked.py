"""Images under attack: as the evaluation of the run has it."""

import dataclasses
import json
import sys

import pytest
import torch
from helpers.evaluation import CPU

from pyengm.data import load
from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.models import load_checkpoint, read_info, save_checkpoint
from pyengm.report.attacked import attack_run
from pyengm.report.source import find_sources


def attacked(run, count=1000, **options):
    (source,) = find_sources([run])
    return attack_run(source, count, device=CPU, **options)


def test_accuracies_are_those_of_the_evaluation(run):
    found, expected = attacked(run), json.loads((run / "results.json").read_text())["best"]
    assert found.labels.equal(load("digits", "test").labels)
    for predicted, name in ((found.clean, "natural"), (found.adversarial, "pgd20")):
        assert (predicted.classes == found.labels).double().mean().item() == pytest.approx(expected[name], abs=1e-9)
        assert ((predicted.confidence > 0.1) & (predicted.confidence <= 1)).all()
    assert found.attack == "PGD-20 (L-infinity, eps = 0.2)"


def test_images_to_look_at(run):
    found = attacked(run, 100)
    assert found.labels[found.shown].tolist() == list(range(10))
    model, _ = load_checkpoint(run / "best.safetensors")
    for images, predicted in ((found.images, found.clean), (found.examples, found.adversarial)):
        confidence, classes = model(images).softmax(dim=1).max(dim=1)
        assert classes.equal(predicted.classes[found.shown])
        torch.testing.assert_close(confidence.detach(), predicted.confidence[found.shown], rtol=1e-4, atol=1e-5)
    largest = (found.examples - found.images).abs().max().item()
    assert 0.19 < largest <= 0.2 + 1e-6
    assert ((found.examples >= 0) & (found.examples <= 1)).all()


def test_repeats_to_the_bit(run):
    first, second = attacked(run, 30), attacked(run, 30)
    assert first.examples.equal(second.examples)
    assert first.adversarial.confidence.equal(second.adversarial.confidence)


def renamed(run, **changes):
    """Gives the best weights another description."""
    path = run / "best.safetensors"
    model, _ = load_checkpoint(path)
    save_checkpoint(path, model, dataclasses.replace(read_info(path), **changes))


def test_data_that_are_not_here(run):
    renamed(run, data="/nowhere/at/all")
    with pytest.raises(DataError, match=r"a report of .*results.json alone needs no images"):
        attacked(run)


def test_code_needs_trust(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "report_data.py").write_text(
        "from pyengm.data import load\ndef make(): return load('digits', 'train'), load('digits', 'test')\n"
    )
    expected = attacked(run, 20)
    renamed(run, data="report_data:make")
    with pytest.raises(ConfigError, match="--trust-config"):
        attacked(run, 20)
    assert "report_data" not in sys.modules
    assert attacked(run, 20, trust_config=True).labels.equal(expected.labels)


def test_damaged_weights(run):
    path = run / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        attacked(run)
