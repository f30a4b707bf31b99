"""Pixels normalised to a mean and deviation by the model's first layer, in the training loop."""

import pytest
import torch
from safetensors.torch import load_file

from pyengm import cli
from pyengm.errors import ConfigError
from pyengm.models import Normalize, load_checkpoint
from pyengm.training import RunFolder, TrainConfig, build_components, fit


@pytest.fixture(scope="module")
def tiny(tiny) -> TrainConfig:
    return tiny.override(epochs=2)


def trained(path, config):
    config = config.override(out=path).resolve()
    run, components = RunFolder.create(config), build_components(config)
    fit(config, components, run)
    return run, components, TrainConfig.load(run.config).resolve()


@pytest.mark.parametrize("method", ["pgd_at", "yopo"])
def test_mean_0_and_deviation_1_change_nothing(method, tiny, tmp_path):
    """Bit for bit: attack, gradient norms of ENGM, and the first layer that YOPO looks for."""
    tiny = tiny.override(method=method, optimizer="engm", attack_steps=2 if method == "pgd_at" else None)
    plain = trained(tmp_path / "plain", tiny)[0]
    normalized = trained(tmp_path / "normalized", tiny.override(mean=(0.0,), std=(1.0,)))[0]
    expected, found = load_file(plain.last), load_file(normalized.last)
    assert found.keys() == {f"network.{name}" for name in expected} | {"normalize.mean", "normalize.std"}
    assert all(found[f"network.{name}"].equal(value) for name, value in expected.items())
    assert plain.read_metrics() == normalized.read_metrics()


@pytest.mark.parametrize("optimizer", ["engm", "entropy_sgd"])
def test_evaluation_rebuilds_the_layer(optimizer, tiny, tmp_path):
    config = tiny.override(mean=(0.3,), std=(0.4,), optimizer=optimizer)
    run, components, kept = trained(tmp_path / "run", config)
    assert (kept.model.mean, kept.model.std) == ((0.3,), (0.4,))
    model, info = load_checkpoint(run.last)
    assert info.model["mean"] == [0.3]
    assert isinstance(model[0], Normalize)
    for name, value in (("mean", 0.3), ("std", 0.4)):  # no step and no average of buffers has moved them
        assert getattr(model[0], name).equal(torch.tensor([[[value]]])), name
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), components.model.eval()(x))  # in another memory layout
    assert (model(x) - model[1](x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.3,)}, "expected both or neither, a value per channel"),
        ({"mean": (0.3,) * 3, "std": (0.4,) * 3}, "one value for each of 1 channels, got 3"),
        ({"mean": (0.3,), "std": (0.0,)}, "std must be positive"),
    ],
)
def test_errors(options, message, tiny):
    with pytest.raises(ConfigError, match=message):
        build_components(tiny.override(**options).resolve())


def test_from_the_command_line(tiny, tmp_path, capsys):
    words = ["train", "--model", "cnn4", "--width", "2", "--epochs", "1", "--attack-steps", "1", "--batch-size", "120"]
    words += ["--autoattack-examples", "1", "--optimizer", "msgd", "--train-indices", str(tiny.data.train_indices)]
    words += ["--out", str(tmp_path / "run")]
    assert cli.main([*words, "--mean", "0.3"]) == 1
    assert "expected both or neither" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*words, "--mean", "0.3", "--std", "0.4"]) == 0
    assert load_checkpoint(tmp_path / "run" / "best.safetensors")[1].model["std"] == [0.4]
