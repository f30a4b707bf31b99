"""The detector of catastrophic overfitting: sees a fall, warns, and can stop with the weights from before it."""

import warnings

import pytest
import torch
from safetensors.torch import load_file

from pyengm.errors import ConfigError
from pyengm.evaluation import create_attack
from pyengm.ops import Key
from pyengm.training import RunFolder, TrainConfig, build_components, fit, loop
from pyengm.training.catastrophic_overfitting import is_catastrophic, training_accuracy


@pytest.fixture
def tiny(tmp_path) -> TrainConfig:
    path = tmp_path / "first.txt"
    path.write_text("\n".join(map(str, range(200))))
    return TrainConfig.from_flat(
        train_indices=path, model="cnn4", width=2, epochs=4, attack_steps=1, batch_size=50, out=tmp_path / "run"
    )


@pytest.mark.parametrize(("before", "now", "fell"), [(None, 0, 0), (0.5, 0.31, 0), (0.5, 0.29, 1), (0.2, 0.5, 0)])
def test_falls_by_more_than_twenty_points(before, now, fell):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert is_catastrophic(before, now) == bool(fell)
    assert [str(w.message)[:23] for w in caught] == ["catastrophic overfittin"] * fell


def test_accuracy_is_that_of_the_first_images_of_the_epoch(tiny):
    config = tiny.resolve()
    components = build_components(config)
    seen = []
    components.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    share = training_accuracy(config, components, 1)
    images = sum(seen) // 6  # five steps and one look at the result
    assert images == 150  # the first whole batches with 128 or more
    assert share == training_accuracy(config, components, 1)
    assert share * images == pytest.approx(round(share * images))
    assert components.model.training


@pytest.mark.parametrize("name", ["pgd10", "fgsm", "square"])
def test_accuracy_under_an_attack_of_the_options(tiny, name):
    """On as many images, with the images' own random starts where the attack has some."""
    config = tiny.override(train_attack=name, train_attack_examples=101).resolve()
    components = build_components(config)
    attack, correct = create_attack(name, config.threats()[0], config.run.seed), 0
    components.model.eval()
    for batch, _ in zip(components.batches.epoch(1), range(3), strict=False):
        key = {"key": Key(config.run.seed, 1, batch.index)} if name != "square" else {}
        x_adv = attack(components.model, batch.x, batch.y, **key)
        correct += (components.model(x_adv).argmax(dim=1) == batch.y).sum().item()
    assert training_accuracy(config, components, 1) == correct / 150


@pytest.mark.parametrize("option", [{"train_attack": "pgd10"}, {"train_attack_examples": 50}])
def test_natural_training_attacks_no_training_images(tiny, option):
    with pytest.raises(ConfigError, match="has no effect: it is for adversarial training"):
        tiny.override(method="natural", attack_steps=None, **option).resolve()


def test_a_distance_is_no_accuracy(tiny):
    with pytest.raises(ConfigError, match="train_attack"):
        tiny.override(train_attack="deepfool")


def run_with(config, monkeypatch, accuracies):
    left = iter(accuracies)
    monkeypatch.setattr(loop, "training_accuracy", lambda *_: next(left))
    config = config.resolve()
    run = RunFolder.create(config)
    fit(config, build_components(config), run)
    return run


def test_warns_and_goes_on(tiny, monkeypatch, capsys):
    with pytest.warns(UserWarning, match=r"fell from 60\.0 to 10\.0 %.*--on-catastrophic-overfitting stop"):
        run = run_with(tiny, monkeypatch, [0.5, 0.6, 0.1, 0.1])
    rows = run.read_metrics()
    assert [row["catastrophic_overfitting"] for row in rows] == [False, False, True, False]
    assert [row["train_pgd"] for row in rows] == [0.5, 0.6, 0.1, 0.1]
    assert "CATASTROPHIC" in capsys.readouterr().out


def test_stops_and_keeps_the_weights_from_before(tiny, monkeypatch, tmp_path, capsys):
    whole = run_with(tiny.override(epochs=2, schedule="constant", out=tmp_path / "two"), monkeypatch, [0.5, 0.6])
    stopping = tiny.override(on_catastrophic_overfitting="stop", schedule="constant", out=tmp_path / "stopped")
    with pytest.warns(UserWarning, match="catastrophic"):
        run = run_with(stopping, monkeypatch, [0.5, 0.6, 0.1])
    assert len(run.read_metrics()) == 3
    assert "stopped, and" in capsys.readouterr().out.replace("\n", " ")
    expected = load_file(whole.last)
    assert all(value.equal(expected[name]) for name, value in load_file(run.last).items())
    before = run.last.read_bytes()
    config = TrainConfig.load(run.config).resolve()
    fit(config, build_components(config), run)  # resumed: stopped for good
    assert run.last.read_bytes() == before
    assert len(run.read_metrics()) == 3


def test_natural_training_is_not_watched(tiny):
    config = tiny.override(method="natural", attack_steps=None, epochs=1).resolve()
    run = RunFolder.create(config)
    fit(config, build_components(config), run)
    assert "train_pgd" not in run.read_metrics()[0]


def test_sees_a_real_fall(tiny):
    """Weights that fit only images as they are, after weights that withstand the attack."""
    config = tiny.override(eps=0.3).resolve()
    components = build_components(config)
    robust = training_accuracy(config, components, 0)
    with torch.no_grad():
        for p in components.model.parameters():
            p.mul_(0)
        labels = components.batches.data.labels
        components.model.dense.bias[labels[0]] = 1.0 if hasattr(components.model.dense, "bias") else 0
    constant = training_accuracy(config, components, 0)
    assert 0 < constant < 0.3
    assert robust <= 1


def test_a_method_that_begins_again_does_not_overfit(tiny, monkeypatch, tmp_path):
    config = tiny.override(
        method="sub_at",
        method_options=("sampling_epochs=2",),
        on_catastrophic_overfitting="stop",
        out=tmp_path / "sub",
    )
    rows = run_with(config, monkeypatch, [0.6, 0.7, 0.1, 0.2]).read_metrics()
    assert [row["catastrophic_overfitting"] for row in rows] == [False] * 4
