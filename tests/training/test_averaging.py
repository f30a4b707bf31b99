"""Averages of the weights: by their formulas, with every kind of step, evaluated and saved, bitwise after a stop."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers.runs import always_stop, start, train
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyengm.errors import ConfigError
from pyengm.evaluation import accuracy, create_attack
from pyengm.methods import Curriculum
from pyengm.models import build, load_checkpoint
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit, loop
from pyengm.training.averaging import EMA, SWA, Median, build_averaging

# Each with its own way of changing the weights: AWP takes moves back, Sub-AT and Curriculum begin again, FreeAT updates
# several times, Entropy-SGD once for several batches, and the scaler of fp16 skips updates.
WAYS = {
    "pgd_at": {"attack_steps": 2},
    "awp": {"method": "trades_awp", "attack_steps": 1, "method_options": ("warmup=1",)},
    "sub_at": {"method": "sub_at", "method_options": ("sampling_epochs=1", "dimension=1"), "select_on": "none"},
    "curriculum": {"method": "curriculum", "attack_steps": 2, "method_options": ("patience=1",)},
    "free_at": {"method": "free_at", "method_options": ("replays=2",)},
    "entropy_sgd": {"optimizer": "entropy_sgd", "optimizer_options": ("inner_steps=2",), "attack_steps": 1},
    "fp16": {"attack_steps": 1, "precision": "fp16"},
}


@pytest.fixture(scope="module")
def tiny(tiny) -> TrainConfig:
    return tiny.override(attack_steps=None)


def state_of(run: RunFolder) -> dict:
    return run.checkpoints(2).load(torch.device("cpu")).shared


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("cnn4", width=2, image_size=8, in_channels=1)


def walk(model: nn.Module, seed: int) -> None:
    """Other weights, statistics and counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.add_(torch.randn(t.shape, generator=generator) if t.is_floating_point() else 1)


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for name, t in state.items():
        assert t.equal(expected[name]), name


class TestFormulas:
    def test_ema(self):
        """The shares of the new weights are those of the docstring, written out."""
        model, shares = network(), [1, 9 / 11, 9 / 12, 9 / 13, 0.65, 0.65, 0.65]
        ema = EMA(model, decay=0.35)
        expected = {name: t.double() for name, t in model.state_dict().items()}
        for seed, share in enumerate(shares):
            walk(model, seed)
            ema.after_step()
            for name, t in model.state_dict().items():
                expected[name] += share * (t - expected[name]) if t.is_floating_point() else t - expected[name]
        for name, t in ema.evaluated.state_dict().items():
            # Seven roundings of numbers of size 3.
            torch.testing.assert_close(t.double(), expected[name], rtol=0, atol=7 * 3 * 2**-23)
        assert ema.evaluated.block1[1].num_batches_tracked == len(shares)

    def test_ema_is_that_of_torch(self):
        """Where the decay is small enough to have no warm-up."""
        model = network()
        ema, torchs = EMA(model, 0.1), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1), use_buffers=True)
        for seed in range(5):
            walk(model, seed)
            ema.after_step()
            torchs.update_parameters(model)
        for name, p in ema.evaluated.named_parameters():
            assert p.equal(torchs.module.get_parameter(name)), name
        assert ema.evaluated.block1[1].running_var.equal(torchs.module.block1[1].running_var)

    def test_mean_is_that_of_torch_from_its_first_epoch_on(self):
        model = network()
        mean, torchs = SWA(model, start=2), AveragedModel(model, use_buffers=True)
        for epoch in range(6):
            walk(model, epoch)
            mean.after_epoch(epoch)
            if epoch < 2:
                assert mean.evaluated is model
            else:
                torchs.update_parameters(model)
        assert mean.count == 4
        expected = torchs.module.state_dict()
        for name, t in mean.evaluated.state_dict().items():
            if t.is_floating_point():
                torch.testing.assert_close(t, expected[name], rtol=1e-6, atol=1e-6)  # a few roundings
        assert mean.evaluated.block1[1].num_batches_tracked == 6

    def test_median_is_that_of_numpy_from_its_first_epoch_on(self):
        model, seen = network(), []
        median = Median(model, start=2)
        for epoch in range(6):
            walk(model, epoch)
            median.after_epoch(epoch)
            if epoch < 2:
                assert median.evaluated is model
                continue
            seen.append({name: t.clone() for name, t in model.state_dict().items()})
            for name, t in median.evaluated.state_dict().items():
                kept = np.stack([state[name].numpy() for state in seen])
                assert np.array_equal(t.numpy(), np.median(kept, axis=0) if t.is_floating_point() else kept[-1]), name
        assert median.count == 4

    def test_median_leaves_out_an_outlier(self):
        model = network()
        median, before = Median(model, start=0), deepcopy(model)
        for epoch in range(3):
            with torch.no_grad():
                model.load_state_dict(before.state_dict())
                next(model.parameters()).add_(1e6 if epoch == 1 else 0)
            median.after_epoch(epoch)
        assert_same(median.evaluated.state_dict(), before.state_dict())

    @pytest.mark.parametrize("average", ["ema", "swa", "median"])
    def test_restart_forgets(self, average):
        model = network()
        held = build_averaging(average, model, decay=0.9, start=0)

        def pass_by(seed):
            walk(model, seed)
            held.after_step()
            held.after_epoch(seed)

        pass_by(0)
        pass_by(1)
        held.restart()
        assert held.evaluated is model
        pass_by(2)
        assert held.evaluated is not model
        assert all(p.equal(held.evaluated.get_parameter(name)) for name, p in model.named_parameters())

    def test_keeps_the_memory_layout(self):
        model = network().to(memory_format=torch.channels_last)
        ema = EMA(model, 0.9)
        ema.after_step()
        walk(model, 0)
        ema.after_step()
        for name, p in model.named_parameters():
            assert ema.evaluated.get_parameter(name).stride() == p.stride()

    def test_none_is_the_model_itself(self):
        model = network()
        held = build_averaging("none", model, decay=0.9, start=None)
        held.after_step()
        held.after_epoch(0)
        assert held.evaluated is model
        assert held.state_dict() == {}


class TestSteps:
    @pytest.mark.parametrize("way", WAYS)
    def test_ema_is_of_the_weights_between_steps(self, tiny, tmp_path, monkeypatch, way):
        """Weights recorded after every step, averaged by a second EMA, and forgotten where the run begins again."""
        config, run = start(tmp_path / "run", tiny.override(average="ema", ema_decay=0.7, **WAYS[way]))
        components = build_components(config)
        shadow = deepcopy(components.model)
        second, original = EMA(shadow, 0.7), loop.update

        def step(config, components, group, epoch):
            if epoch == components.method.restart_epoch and components.averaging.count == 0:
                second.restart()
            sums = original(config, components, group, epoch)
            shadow.load_state_dict(components.model.state_dict())
            second.after_step()
            assert second.count == components.averaging.count
            assert_same(components.averaging.average.state_dict(), second.average.state_dict())
            return sums

        monkeypatch.setattr(loop, "update", step)
        fit(config, components, run)
        assert second.count == {"sub_at": 2 * 4, "entropy_sgd": 3 * 2}.get(way, 3 * 4)
        moved = (p.equal(components.model.get_parameter(name)) for name, p in second.average.named_parameters())
        assert not all(moved)

    def test_sub_at_averages_its_second_phase_alone(self, tiny, tmp_path):
        config = tiny.override(average="swa", swa_start=0, **WAYS["sub_at"])
        assert state_of(train(tmp_path / "run", config))["averaging"]["count"] == 2

    def test_curriculum_that_goes_back_begins_the_average_anew(self, tiny, tmp_path, monkeypatch):
        original, gone_back = Curriculum.finish_epoch, []

        def finish_epoch(self, model, metrics):
            self.epochs_without_improvement, self.k = 5, 0  # of its patience of 1
            scores = {"natural": metrics["epoch"] == 0, "robust": metrics["epoch"] == 0}
            gone_back.append(original(self, model, {**metrics, **scores, "train_robust": 1.0}))
            return gone_back[-1]

        monkeypatch.setattr(Curriculum, "finish_epoch", finish_epoch)
        config = tiny.override(average="swa", swa_start=0, epochs=4, **WAYS["curriculum"])
        assert state_of(train(tmp_path / "run", config))["averaging"]["count"] == 0
        assert gone_back == [False, True, True, True]

    @pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the optimizer's own is skipped
    def test_no_step_of_fp16_is_lost(self, tiny):
        """A scale that overflows: the update is skipped, and the average takes the weights that stay."""
        config = tiny.override(average="ema", **WAYS["fp16"]).resolve()
        components = build_components(config)
        components.scaler._init_scale = 2.0**40
        before = deepcopy(components.model)
        components.network.train()
        loop.update(config, components, [next(components.batches.epoch(0))], 0)
        for name, p in before.named_parameters():
            assert p.equal(components.model.get_parameter(name))
            assert p.equal(components.averaging.evaluated.get_parameter(name))


START = {"ema": {}, "swa": {"swa_start": 1}, "median": {"swa_start": 1}}


class TestRuns:
    @pytest.mark.parametrize("average", START)
    def test_training_goes_on_with_its_own_weights(self, tiny, tmp_path, average):
        config = tiny.override(attack_steps=2)
        plain = state_of(train(tmp_path / "plain", config))
        averaged = state_of(train(tmp_path / "averaged", config.override(average=average, **START[average])))
        torch.testing.assert_close(averaged["model"], plain["model"], rtol=0, atol=0)
        torch.testing.assert_close(averaged["optimizer"]["state"], plain["optimizer"]["state"], rtol=0, atol=0)
        assert averaged["optimizer"]["param_groups"] == plain["optimizer"]["param_groups"]

    @pytest.mark.parametrize("average", START)
    def test_averages_are_what_is_measured_and_saved(self, tiny, tmp_path, average):
        config = tiny.override(attack_steps=2, lr=0.5, average=average, **START[average])
        run = train(tmp_path / "run", config)
        state, rows = state_of(run), run.read_metrics()
        last = load_file(run.last)
        assert all(t.equal(state["averaging"]["average"][name]) for name, t in last.items())
        assert not all(t.equal(state["model"][name]) for name, t in last.items())
        config = config.resolve()
        components, measured = build_components(config), {"seed": 0, "device": torch.device("cpu")}
        attack = create_attack("pgd20", config.threats()[0])
        for path in (run.best, run.last):
            model, info = load_checkpoint(path)
            assert accuracy(model, components.held_out, None, **measured) == rows[info.epoch]["natural"]
            assert accuracy(model, components.held_out, attack, **measured) == rows[info.epoch]["robust"]

    @pytest.mark.parametrize(
        ("average", "way"),
        [*(("ema", way) for way in WAYS), ("swa", "pgd_at"), ("swa", "sub_at"), ("median", "sub_at")],
    )
    def test_goes_on_after_a_stop_at_any_batch(self, tiny, tmp_path, monkeypatch, average, way):
        start_option = {} if average == "ema" else {"swa_start": 0}
        config = tiny.override(average=average, lr=0.02, **start_option, **WAYS[way])
        whole = train(tmp_path / "whole", config)
        config, run = start(tmp_path / "stopped", config)
        with monkeypatch.context() as patch:
            always_stop(patch)
            for _ in range(3 * (2 if way == "entropy_sgd" else 4)):
                with pytest.raises(Interrupted):
                    fit(config, build_components(config), run)
        fit(config, build_components(config), run)
        assert_same(load_file(run.last), load_file(whole.last))
        assert_same(load_file(run.best), load_file(whole.best))
        assert_same(state_of(run)["model"], state_of(whole)["model"])
        assert run.read_metrics() == whole.read_metrics()

    def test_lives_with_half_precision_and_layouts(self, tiny, tmp_path):
        """bf16 trains in channels_last; the average is float32, of the same layout, and is what is saved."""
        config = tiny.override(attack_steps=1, epochs=1, average="ema", precision="bf16").resolve()
        components = build_components(config)
        for name, p in components.model.named_parameters():
            average = components.averaging.average.get_parameter(name)
            assert (average.dtype, average.stride()) == (p.dtype, p.stride())
        state = state_of(train(tmp_path / "run", config))
        assert state["averaging"]["count"] == 4


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"average": "mean"}, "unknown average 'mean'; known: none, ema, swa, median"),
            ({"ema_decay": 1.0}, "ema_decay is 1.0; expected a share from 0 to less than 1"),
            ({"ema_decay": float("nan")}, "ema_decay is nan"),
            ({"swa_start": -1}, "swa_start is -1; expected an epoch of the run, counted from 0"),
            ({"swa_start": 4, "epochs": 4}, "swa_start is 4 of 4 epochs"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_flat(**options)

    def test_a_mean_begins_after_three_quarters(self):
        assert TrainConfig.from_flat(average="swa").resolve().weights.swa_start == 10  # of 14 epochs
        assert TrainConfig.from_flat(average="swa", epochs=1).resolve().weights.swa_start == 0
        assert TrainConfig.from_flat(average="swa", epochs=40, swa_start=3).resolve().weights.swa_start == 3
        assert TrainConfig.from_flat(average="median", epochs=120).resolve().weights.swa_start == 74
        assert TrainConfig.from_flat(average="ema").resolve().weights.swa_start is None
        with pytest.raises(ConfigError, match="swa_start is 20 of 14 epochs"):
            TrainConfig.from_flat(average="swa", swa_start=20).resolve()
