"""Runs on images with erased squares (cutout), with boxes of other images (CutMix), and of smaller sizes at first."""

import pytest
from helpers.runs import stopped_after_every_batch, train

from pyengm.errors import ConfigError
from pyengm.training import build_components


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "engm", "attack_steps": 2, "example_weights": "gairat", "weight_options": ("begin=0",)},
        {"optimizer": "aengm", "method": "trades_awp", "attack_steps": 1, "method_options": ("warmup=1",)},
        {"optimizer": "msgd", "method": "free_at", "attack_steps": None, "method_options": ("replays=2",)},
        {"optimizer": "engm", "method": "liet", "attack_steps": None, "cutmix": 0.0, "resolutions": ("0:5", "1:6")},
    ],
)
def test_stopped_and_resumed_after_every_batch(tiny, tmp_path, monkeypatch, options):
    shared = {"epochs": 2, "cutout": 3, "cutmix": 0.8, "augment": "shift", "average": "ema", "batch_size": 54}
    shared |= {"select_on": "none", "train_attack_examples": 30}
    config = tiny.override(**{**shared, **options})
    if config.data.resolutions:
        config = config.override(model="resnet18", norm_layer="gn")
    whole = train(tmp_path / "whole", config)
    run = stopped_after_every_batch(tmp_path / "stopped", config, monkeypatch, stops=2 * 2)
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.read_metrics() == whole.read_metrics()
    plain = train(tmp_path / "plain", config.override(cutmix=0.0, resolutions=()))
    assert whole.last.read_bytes() != plain.last.read_bytes()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("mart", "its boosted cross-entropy needs one right class"),
        ("liet", "its labels are smoothed at random"),
        ("ssat", "it looks where an image is first classified wrong"),
        ("atas", "it keeps"),
    ],
)
def test_methods_that_need_whole_images_of_one_class(tiny, method, reason):
    config = tiny.override(method=method, attack_steps=None, cutmix=1.0)
    with pytest.raises(ConfigError, match=f"cutmix is 1, whose images show two classes, and {method} .*: {reason}"):
        build_components(config.resolve())
    build_components(config.override(cutmix=0.0, cutout=3).resolve())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_probability(tiny, share):
    with pytest.raises(ConfigError, match=r"cutmix is .*; expected a probability from 0 to 1"):
        tiny.override(cutmix=share)
