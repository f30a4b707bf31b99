"""Runs with extra training images."""

import numpy as np
import pytest
import torch
from helpers.runs import stopped_after_every_batch, train

from pyengm import training
from pyengm.data import load
from pyengm.errors import ConfigError
from pyengm.training import build_components


@pytest.fixture(scope="module")
def extra(tmp_path_factory):
    """Digits that the run does not train on, as a file of extra images."""
    data = load("digits", "train").subset(range(200, 400))
    path = tmp_path_factory.mktemp("extra") / "digits.npz"
    np.savez(path, image=data.images.numpy().transpose(0, 2, 3, 1), label=data.labels.numpy())
    return path


@pytest.mark.parametrize("optimizer", ["msgd", "engm"])
@pytest.mark.parametrize("method", ["pgd_at", "atas", "fgsm_rs"])
def test_stopped_and_resumed_after_every_batch(tiny, extra, tmp_path, monkeypatch, method, optimizer):
    steps = 2 if method == "pgd_at" else None
    config = tiny.override(method=method, optimizer=optimizer, epochs=2, extra_data=extra, attack_steps=steps)
    config = config.override(augment="shift", instance_log=method != "pgd_at")
    whole = train(tmp_path / "whole", config)
    run = stopped_after_every_batch(tmp_path / "stopped", config, monkeypatch, stops=2 * 4)
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.read_metrics() == whole.read_metrics()


def test_batches_are_of_both_kinds(tiny, extra):
    components = build_components(tiny.override(extra_data=extra, extra_fraction=0.4).resolve())
    (batch, *_) = components.batches.epoch(0)
    assert (batch.index >= 120).sum() == 12
    assert len(batch.index) == 30
    assert training.run.images_of(components)["train"].name == "digits"
    assert len(components.batches) == 4


def test_a_run_with_other_extra_images_is_not_resumed(tiny, extra, tmp_path):
    copied = tmp_path / "extra.npz"
    copied.write_bytes(extra.read_bytes())
    config = tiny.override(extra_data=copied, epochs=1, out=tmp_path / "run", eval_both_threats=False)
    training.train(config.override(autoattack_examples=1))
    with np.load(extra) as file:
        np.savez(copied, image=255 - file["image"], label=file["label"])
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"have changed \(train images: other pixels\)"):
        training.train(config.override(resume=True))


def test_a_share_without_images_has_no_effect(tiny):
    with pytest.raises(ConfigError, match="extra_fraction has no effect: it is for extra_data"):
        tiny.override(extra_fraction=0.5).resolve()


def test_methods_that_keep_something_for_each_image_need_one_process(tiny, extra, monkeypatch):
    config = tiny.override(extra_data=extra).resolve()
    monkeypatch.setattr("pyengm.training.builders.world_size", lambda: 2)
    assert build_components(config).batches.world_size == 2
    with pytest.raises(ConfigError, match="atas is kept for each image"):
        build_components(config.override(method="atas", attack_steps=None).resolve())


def test_the_probe_is_of_the_own_images(tiny, extra):
    components = build_components(tiny.override(extra_data=extra, probe=20).resolve())
    assert components.probe.index.max() < 120
    assert torch.equal(components.probe.index.sort().values, components.probe.index)
