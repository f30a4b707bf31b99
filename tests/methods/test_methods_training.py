"""Every method in the training loop: with ENGM and with MSGD, in both norms, and bitwise after a stop at any batch."""

import os

import pytest
from helpers.method_runs import MANY_STEPS, by_kind, options_for
from safetensors.torch import load_file

from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit
from pyengm.training.signals import StopRequest


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    path = tmp_path_factory.mktemp("indices") / "first.txt"
    path.write_text("\n".join(map(str, range(100))))
    return path


def train(config: TrainConfig, monkeypatch, stops: bool) -> RunFolder:
    config = config.resolve()
    run = RunFolder.create(config)
    with monkeypatch.context() as patch:
        if stops:
            patch.setattr(
                StopRequest, "requested", property(lambda self: True, lambda self, value: None), raising=False
            )
        for _ in range(20):
            try:
                fit(config, build_components(config), run)
                break
            except Interrupted:
                assert stops
    return run


@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize("optimizer", ["engm", pytest.param("msgd", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_resumes_bitwise_after_a_stop_at_any_batch(method, optimizer, indices, tmp_path, monkeypatch):
    config = options_for(method, optimizer, train_indices=indices)
    whole = train(config.override(out=tmp_path / "whole"), monkeypatch, stops=False)
    stopped = train(config.override(out=tmp_path / "stopped"), monkeypatch, stops=True)
    weights, expected = load_file(stopped.last), load_file(whole.last)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert value.equal(weights[name]), name
        assert value.isfinite().all()
    assert whole.read_metrics() == stopped.read_metrics()
    assert len(whole.read_metrics()) == 3


@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize("method", [by_kind(name) for name in METHODS if name != "grad_align"])
def test_l2(method, indices, tmp_path, monkeypatch):
    run = train(
        options_for(method, "engm", train_indices=indices, threat="l2", out=tmp_path / "run"), monkeypatch, False
    )
    assert all(value.isfinite().all() for value in load_file(run.last).values())


@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize("method", [by_kind(name) for name in METHODS if name not in ("natural", "sub_at", "nuat")])
def test_learns(method, tmp_path, monkeypatch):
    """Digits, a few hundred images at a time: far better than chance under PGD-20."""
    lr = 0.05 if method == "mlcat" else 0.1  # it raises small losses up to a million times
    config = options_for(method, "msgd", epochs=4, width=6, lr=lr, augment="none", eps=0.05, norm_layer="bn")
    run = train(config.override(method_options=config.method.options, out=tmp_path / "run"), monkeypatch, False)
    assert run.read_metrics()[-1]["natural"] > 0.4


def test_state_of_a_method_is_in_the_checkpoint(indices, tmp_path, monkeypatch):
    run = train(options_for("atas", "msgd", train_indices=indices, out=tmp_path / "run"), monkeypatch, False)
    state = run.checkpoints(2).load("cpu").parts[0]["buffers"]
    config = TrainConfig.load(run.config).resolve()
    method = build_components(config).method
    assert method.state_dict().keys() == state.keys()
    assert all(buffer["values"].any() for buffer in state.values())


class TestDoubleBackward:
    def test_falls_back_to_a_pass_per_example_under_batch_norm(self, indices):
        config = options_for("grad_align", "engm", train_indices=indices, norm_layer="bn").resolve()
        with pytest.warns(UserWarning, match="one backward pass per example"):
            assert build_components(config).optimizer.norms.mode == "exact"

    def test_estimates_are_refused(self, indices):
        config = options_for("grad_align", "engm", train_indices=indices, norm_layer="bn", norms="corrected").resolve()
        with pytest.raises(ConfigError, match="use exact or auto"):
            build_components(config)

    def test_exact_norms_train(self, indices, tmp_path, monkeypatch):
        config = options_for(
            "grad_align", "engm", train_indices=indices, norm_layer="bn", epochs=1, out=tmp_path / "run"
        )
        with pytest.warns(UserWarning, match="one backward pass per example"):
            train(config, monkeypatch, False)


@pytest.mark.skipif("PYENGM_TEST_CIFAR10" not in os.environ, reason="PYENGM_TEST_CIFAR10 names no folder")
@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize("optimizer", ["engm", "msgd"])
@pytest.mark.parametrize("method", METHODS)
def test_cifar10(method, optimizer, tmp_path, monkeypatch):
    """The recipe of CIFAR-10 on a few images: three epochs of two batches."""
    indices = tmp_path / "some.txt"
    indices.write_text("\n".join(map(str, range(0, 50_000, 1000))))
    config = TrainConfig.from_flat(
        data=os.environ["PYENGM_TEST_CIFAR10"],
        train_indices=indices,
        model="resnet18",
        width=4,
        norm_layer="gn" if method == "grad_align" and optimizer == "engm" else "bn",
        method=method,
        method_options=("sampling_epochs=2", "dimension=2") if method == "sub_at" else (),
        optimizer=optimizer,
        epochs=3,
        batch_size=25,
        attack_steps=2 if method in MANY_STEPS else None,
        select_on="none",
        on_catastrophic_overfitting="warn",
        out=tmp_path / "run",
    )
    run = train(config, monkeypatch, False)
    assert all(value.isfinite().all() for value in load_file(run.last).values())
