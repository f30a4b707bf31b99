"""Accelerate and Transformers: accumulation, scales, other optimisers; wrong habits raise."""

import types

import pytest
import torch
from helpers.loops import theta
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pyengm
from pyengm.errors import ConfigError
from pyengm.examples.problem import ALPHA, BATCH, LR, digits, loader, network
from pyengm.integrations.accelerate import backward, unwrap

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def plain(optimizer, net, alpha=None):
    for x, y in loader():
        losses = F.cross_entropy(net(x), y, reduction="none")
        optimizer.zero_grad()
        optimizer.backward(losses) if alpha is None else pyengm.clipped_backward(losses, net, alpha)
        optimizer.step()
    return theta(net)


@pytest.fixture(scope="module")
def expected():
    net = network()
    return plain(pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA), net)


def train(accelerator, optimizer, net, batch=BATCH, **options):
    model, optimizer, data = accelerator.prepare(net, optimizer, DataLoader(digits(), batch))
    for x, y in data:
        with accelerator.accumulate(model):
            stats = backward(accelerator, optimizer, F.cross_entropy(model(x), y, reduction="none"), **options)
            optimizer.step()
            optimizer.zero_grad()
    return stats


def engm(net):
    return pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA)


def test_gradient_accumulation(expected):
    net = network()
    train(accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4), engm(net), net, BATCH // 4)
    torch.testing.assert_close(theta(net), expected, rtol=0, atol=1e-5)


def test_loss_scaling(expected):
    """As in fp16, which Accelerate has on GPUs alone: the scaler is put in by hand."""
    net, accelerator = network(), accelerate.Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(accelerator, engm(net), net)
    torch.testing.assert_close(theta(net), expected, rtol=0, atol=1e-6)


def test_an_optimiser_of_torch():
    net, twin = network(), network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    stats = train(accelerate.Accelerator(cpu=True), optimizer, net, alpha=2.0)
    assert (stats.weights < 1).any()
    weights = plain(torch.optim.AdamW(twin.parameters(), lr=1e-3), twin, alpha=2.0)
    torch.testing.assert_close(theta(net), weights, rtol=0, atol=1e-5)


def test_the_wrong_habit_raises():
    net, accelerator = network(), accelerate.Accelerator(cpu=True)
    model, optimizer, data = accelerator.prepare(net, engm(net), DataLoader(digits(), BATCH))
    before = theta(net)
    x, y = next(iter(data))
    accelerator.backward(F.cross_entropy(model(x), y))
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)"):
        optimizer.step()
    assert theta(net).equal(before)
    with pytest.raises(ConfigError, match="alpha=1 is for other optimisers"):
        backward(accelerator, optimizer, F.cross_entropy(model(x), y, reduction="none"), alpha=1)


def test_engines_of_their_own():
    deepspeed = types.SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED)
    net = network()
    with pytest.raises(ConfigError, match="DEEPSPEED takes backward passes of its own"):
        backward(deepspeed, engm(net), torch.ones(3))


def test_states_are_saved(tmp_path, expected):
    net, accelerator = network(), accelerate.Accelerator(cpu=True)
    optimizer = engm(net)
    _, wrapped, _ = accelerator.prepare(net, optimizer, DataLoader(digits(), BATCH))
    assert unwrap(wrapped) is optimizer
    unwrap(wrapped).alpha = 2.0
    accelerator.save_state(str(tmp_path))
    unwrap(wrapped).alpha = 3.0
    accelerator.load_state(str(tmp_path))
    assert optimizer.alpha == 2.0


class TestTrainer:
    @pytest.fixture(autouse=True)
    def needs_transformers(self):
        self.transformers = pytest.importorskip("transformers")
        self.example = pytest.importorskip("pyengm.examples.hf_trainer")

    def options(self, **options):
        return {"disable_tqdm": True} | options

    def test_gradient_accumulation(self, expected):
        options = self.options(gradient_accumulation_steps=4, per_device_train_batch_size=BATCH // 4)
        torch.testing.assert_close(theta(self.example.main(**options)), expected, rtol=0, atol=1e-5)

    def test_the_wrong_habit_raises(self):
        with pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)"):
            self.example.main(self.transformers.Trainer, **self.options())

    def test_a_loss_of_the_batch(self):
        class Own(self.example.PerExampleTrainer):
            def __init__(self, *args, **options):
                super().__init__(*args, **options, compute_loss_func=lambda outputs, labels, **_: 0)

        class Mean(self.example.PerExampleTrainer):
            def compute_losses(self, model, inputs):
                return super().compute_losses(model, inputs).mean()

        with pytest.raises(ConfigError, match="override compute_losses"):
            self.example.main(Own, **self.options())
        with pytest.raises(ValueError, match=r"per-example losses of shape \(n,\)"):
            self.example.main(Mean, **self.options())

    @pytest.mark.parametrize("own", [True, False])
    def test_label_smoothing_and_optimisers_by_class(self, own, tmp_path):
        class Smooth(self.example.PerExampleTrainer):
            alpha = None if own else 2.0

        net, twin = network(), network()
        kind = (pyengm.ENGM, {"alpha": ALPHA}) if own else (torch.optim.AdamW, {"lr": 1e-3})
        arguments = self.transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            label_smoothing_factor=0.1,
            learning_rate=LR if own else 1e-3,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            weight_decay=0.01,
            max_grad_norm=0,
            save_strategy="no",
            report_to=[],
            **self.options(use_cpu=True),
        )
        model = self.example.Classifier(net)
        model.config = types.SimpleNamespace(problem_type=None)
        trainer = Smooth(
            model,
            arguments,
            train_dataset=[{"pixel_values": x, "labels": y} for x, y in digits()],
            optimizer_cls_and_kwargs=(kind[0], {"lr": arguments.learning_rate, **kind[1]}),
        )
        trainer.train()
        assert (trainer.example_stats.weights < 1).any()
        groups = [
            {name: group[name] for name in ("params", "weight_decay")} for group in trainer.optimizer.param_groups
        ]
        twins = dict(zip(net.parameters(), twin.parameters(), strict=True))
        for group in groups:
            group["params"] = [twins[p] for p in group["params"]]
        optimizer = kind[0](groups, **{"lr": arguments.learning_rate, **kind[1]})
        for x, y in loader():
            losses = F.cross_entropy(twin(x), y, reduction="none", label_smoothing=0.1)
            optimizer.zero_grad()
            optimizer.backward(losses) if own else pyengm.clipped_backward(losses, twin, 2.0)
            optimizer.step()
        torch.testing.assert_close(theta(net), theta(twin), rtol=0, atol=1e-5)
