"""Mixed precision: training learns and resumes bitwise, parameters and losses stay float32, nothing is lost."""

from pathlib import Path

import pytest
import torch
from helpers.runs import always_stop
from safetensors.torch import load_file
from torch import nn

from pyengm.attacks import PGD
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods import METHODS
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.optim import CLOSURE_OPTIMIZERS
from pyengm.pergrad import exact_norms
from pyengm.pergrad.verify import HALF_TOLERANCE
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit
from pyengm.training.precision import FIRST_SCALE, Autocast, in_precision
from pyengm.training.steps.train_step import train_step

HALVES = ("bf16", "fp16")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def tiny(tiny) -> TrainConfig:
    return tiny.override(epochs=2)


def train(config: TrainConfig, path: Path, monkeypatch, stops: bool = False) -> RunFolder:
    config = config.override(out=path).resolve()
    run = RunFolder.create(config)
    with monkeypatch.context() as patch:
        if stops:
            always_stop(patch)
        for _ in range(20):
            try:
                fit(config, build_components(config), run)
                break
            except Interrupted:
                assert stops
    return run


def model_of(norm: str = "gn", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("cnn4", num_classes=10, in_channels=1, image_size=8, width=4, norm_layer=norm)


def batch_of(n: int = 8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)


class TestNetwork:
    @pytest.mark.parametrize("precision", HALVES)
    def test_computes_in_16_bits_and_returns_float32(self, precision):
        model, (x, _) = model_of(), batch_of()
        network, seen = in_precision(model, precision), []
        model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        output = network(x)
        assert (output.dtype, seen) == (torch.float32, [TYPES[precision]])
        torch.testing.assert_close(output, model(x), rtol=0.05, atol=0.05)
        assert [id(p) for p in network.parameters()] == [id(p) for p in model.parameters()]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert network.get_submodule("head") is model.head
        network.eval()
        assert not model.head.training

    def test_float32_is_the_model_itself(self):
        model = model_of()
        assert in_precision(model, "float32") is model

    def test_gradients_below_the_range_of_float16_reach_the_images(self):
        """A model that shrinks gradients to 1e-6 before they pass through float16."""

        class Faint(nn.Module):
            def __init__(self):
                super().__init__()
                self.dense = nn.Linear(16, 3)

            def forward(self, x):
                return self.dense(x.flatten(1)) * 1e-7

        torch.manual_seed(0)
        model, x, y = Faint(), torch.rand(4, 1, 4, 4), torch.arange(4) % 3
        network = Autocast(model, torch.float16)
        expected, _, _ = input_grad(model, x, lambda logits: cross_entropy(logits, y))
        found, _, _ = input_grad(network, x, lambda logits: cross_entropy(logits, y))
        assert expected.abs().max() < 1e-7  # float16 ends at 6e-8
        torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-9)

    @pytest.mark.parametrize("precision", HALVES)
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_attacks_find_what_they_find_in_float32(self, precision, norm):
        model, (x, y) = model_of(), batch_of(64)
        attack = PGD(0.2, 0.05, 5, norm=norm, random_start=False)
        losses = [
            cross_entropy(model(attack(runs, x, y)), y).mean() for runs in (model, in_precision(model, precision))
        ]
        start = cross_entropy(model(x), y).mean()
        assert (losses[1] - start) > 0.97 * (losses[0] - start) > 0

    @pytest.mark.parametrize("precision", HALVES)
    def test_per_example_norms(self, precision):
        """ENGM's, on the graph of the model in 16 bits, against that graph's own exact derivatives."""
        model, (x, y) = model_of(), batch_of()
        losses = cross_entropy(in_precision(model, precision)(x), y)
        expected = exact_norms(losses, model.parameters())
        components = build_components(TrainConfig.from_flat(model="cnn4", width=2).resolve())
        optimizer = type(components.optimizer)(model.parameters(), alpha=expected.median().item())
        used = optimizer.backward(losses)
        torch.testing.assert_close(used.norms, expected, rtol=HALF_TOLERANCE, atol=0)
        assert used.norms.dtype == torch.float32


class TestTraining:
    @pytest.mark.parametrize("precision", HALVES)
    @pytest.mark.parametrize("optimizer", ["engm", "msgd"])
    @pytest.mark.parametrize("norm_layer", ["bn", "gn"])
    def test_goes_on_bitwise_after_a_stop_at_any_batch(
        self, precision, optimizer, norm_layer, tiny, tmp_path, monkeypatch
    ):
        config = tiny.override(precision=precision, optimizer=optimizer, norm_layer=norm_layer)
        whole = train(config, tmp_path / "whole", monkeypatch)
        stopped = train(config, tmp_path / "stopped", monkeypatch, stops=True)
        weights, expected = load_file(stopped.last), load_file(whole.last)
        for name, value in expected.items():
            assert value.equal(weights[name]), name
            assert value.isfinite().all()
            assert value.dtype != TYPES[precision]
        assert whole.read_metrics() == stopped.read_metrics()

    @pytest.mark.parametrize("precision", HALVES)
    @pytest.mark.parametrize("optimizer", ["engm", "msgd"])
    def test_learns(self, precision, optimizer, tmp_path, monkeypatch):
        config = TrainConfig.from_flat(model="cnn4", width=4, attack_steps=2, epochs=2, eps=0.05, batch_size=64, lr=0.1)
        run = train(config.override(precision=precision, optimizer=optimizer), tmp_path / "run", monkeypatch)
        assert run.read_metrics()[-1]["natural"] > 0.5  # chance is 0.1

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_takes_bf16(self, method, tiny, tmp_path, monkeypatch):
        config = tiny.override(
            method=method,
            attack_steps=None,
            epochs=2 if method == "sub_at" else 1,
            precision="bf16",
            optimizer="msgd",
            lr=0.01,
        )
        config = config.override(method_options=("sampling_epochs=1", "dimension=1") if method == "sub_at" else ())
        assert all(
            value.isfinite().all() for value in load_file(train(config, tmp_path / "run", monkeypatch).last).values()
        )

    def test_changes_the_weights(self, tiny, tmp_path, monkeypatch):
        """The option does something: the weights are near those of float32, and not the same."""
        found = []
        for precision in ("float32", *HALVES):
            run = train(tiny.override(precision=precision, epochs=1), tmp_path / precision, monkeypatch)
            found.append(torch.cat([v.flatten() for k, v in load_file(run.last).items() if v.is_floating_point()]))
        for other in found[1:]:
            assert not other.equal(found[0])
            assert (other - found[0]).norm() < 0.2 * found[0].norm()

    def test_a_nan_is_reported_with_its_place(self, tiny, tmp_path):
        config = tiny.override(precision="bf16", out=tmp_path / "run").resolve()
        run, components = RunFolder.create(config), build_components(config)
        with torch.no_grad():
            components.model.head.weight.fill_(torch.nan)
        with pytest.raises(NonFiniteError, match=r"epoch 1, batch 1: .*No epoch was finished yet"):
            fit(config, components, run)


class TestScaler:
    def test_is_part_of_the_state(self, tiny, tmp_path, monkeypatch):
        run = train(tiny.override(precision="fp16"), tmp_path / "run", monkeypatch)
        state = run.checkpoints(2).load("cpu").shared["scaler"]
        assert (state["scale"], state["_growth_tracker"]) == (FIRST_SCALE, 8)

    def test_a_step_that_overflows_is_skipped_and_the_scale_falls(self, tiny):
        components = build_components(
            tiny.override(precision="fp16", method="natural", attack_steps=None, norm_layer="gn").resolve()
        )
        components.scaler.load_state_dict(components.scaler.state_dict() | {"scale": 2.0**30})
        batch = next(components.batches.epoch(0))
        before = [p.detach().clone() for p in components.model.parameters()]
        skipped = 0
        while all(p.equal(q) for p, q in zip(components.model.parameters(), before, strict=True)) and skipped < 30:
            assert components.scaler.get_scale() == 2.0 ** (30 - skipped)
            train_step(
                components.method, components.network, components.optimizer, batch.x, batch.y, scaler=components.scaler
            )
            skipped += 1
        assert 5 < skipped < 30  # float16 ends below 2**16
        assert all(p.isfinite().all() for p in components.model.parameters())

    @pytest.mark.parametrize("method", [n for n, kind in METHODS.items() if n != "natural" and not kind.info.is_pgd])
    def test_methods_that_do_not_know_of_it(self, method):
        with pytest.raises(ConfigError, match=f"precision fp16 scales the losses, which {method} with .*use bf16"):
            TrainConfig.from_flat(method=method, precision="fp16")

    @pytest.mark.parametrize("optimizer", CLOSURE_OPTIMIZERS)
    def test_optimizers_that_do_not_know_of_it(self, optimizer):
        with pytest.raises(ConfigError, match="precision fp16 scales the losses"):
            TrainConfig.from_flat(optimizer=optimizer, precision="fp16")


class TestOptions:
    def test_unknown_precision(self):
        with pytest.raises(ConfigError, match=r"unknown precision 'bf15'; known: float32, bf16, fp16 \(did you mean"):
            TrainConfig.from_flat(precision="bf15")

    @pytest.mark.parametrize("half", [False, True])
    def test_layout(self, half):
        model = build("cnn4", num_classes=10, in_channels=3, image_size=8, width=4)
        assert memory_format_of(to_fast_memory_format(model, torch.device("cuda"), half=half)) == (
            torch.channels_last if half else torch.contiguous_format
        )
        assert memory_format_of(to_fast_memory_format(model, torch.device("cpu"), half=half)) == torch.channels_last

    def test_round_trip(self, tmp_path):
        config = TrainConfig.from_flat(precision="bf16", cuda_graphs=False, compile=True).resolve()
        config.save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.gpu
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("optimizer", ["engm", "msgd"])
def test_on_a_gpu(precision, optimizer, tmp_path, monkeypatch):
    config = TrainConfig.from_flat(
        model="cnn4", width=8, attack_steps=2, epochs=2, eps=0.05, batch_size=64, lr=0.1, device="cuda"
    )
    run = train(config.override(precision=precision, optimizer=optimizer), tmp_path / "run", monkeypatch)
    assert run.read_metrics()[-1]["natural"] > 0.5
