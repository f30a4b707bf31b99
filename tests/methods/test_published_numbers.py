"""Steps of methods and optimisers against what their authors' public code gives in the same setting."""

import pytest
import torch
from helpers.published_numbers import (
    AT_AWP,
    ATAS,
    ATAS_C_0003,
    ATTA,
    ATTA_TRADES,
    ENTROPY_SGD,
    EPS,
    MART,
    MART_BETA_5,
    MART_STEP_4,
    SETTING,
    STEP,
    STEPS,
    TRADES,
    TRADES_AWP,
    TRADES_STEP_4,
    batch,
    crops,
    fingerprint,
    network,
    normal_noise,
    uniform_noise,
    weighted,
)
from helpers.reference_crops import show
from torch.nn import functional as F

from pyengm import MSGD, EntropySGD, methods
from pyengm.attacks import threat_model
from pyengm.data import CropFlip
from pyengm.methods import DatasetSpec, atta, noise
from pyengm.ops import Key

NEAR = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(autouse=True)
def _same_noise(monkeypatch):
    """Random starts as in the setting."""

    def normal(index, shape, **key):
        return normal_noise((len(index), *shape))

    def uniform(index, shape, **key):
        return uniform_noise((len(index), *shape), 0, 1)

    monkeypatch.setattr(noise, "philox_normal", normal)
    monkeypatch.setattr(atta, "philox_normal", normal)
    monkeypatch.setattr(threat_model, "philox_uniform", uniform)


def close(found, expected):
    assert found == pytest.approx(expected, **NEAR)


def train(method, model):
    """One step with SGD; returns the values to compare."""
    optimizer = MSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x, y = batch()
    found = {}
    for outcome in method.passes(model, x, y):
        optimizer.backward(outcome.losses)
        found |= {"x_adv": fingerprint(outcome.x_adv), "loss": outcome.losses.mean().item()}
        found["gradients"] = [weighted(p.grad) for p in model.parameters()]
        optimizer.step()
        found["stepped"] = [weighted(p) for p in model.parameters()]
        if outcome.undo is not None:
            outcome.undo()
        found["weights"] = [weighted(p) for p in model.parameters()]
    found["running_mean"], found["running_var"] = model[1].running_mean.tolist(), model[1].running_var.tolist()
    return found | {"batches": model[1].num_batches_tracked.item()}


def check(found, expected, *names):
    for name in names or expected:
        close(found[name], expected[name])


def test_setting():
    model, (x, y) = network(), batch()
    close(F.cross_entropy(model.eval()(x), y).item(), SETTING["eval_loss"])
    close(F.cross_entropy(model.train()(x), y).item(), SETTING["train_loss"])


@pytest.mark.parametrize(("step", "expected"), [(STEP, TRADES), (2 * STEP, TRADES_STEP_4)])
def test_trades(step, expected):
    check(train(methods.TRADES(EPS, step, STEPS, as_published=True), network()), expected)


def test_trades_with_one_forward_pass_less():
    """Only the statistics differ."""
    found = train(methods.TRADES(EPS, STEP, STEPS), network())
    check(found, TRADES, "x_adv", "loss", "gradients", "weights")
    assert found["batches"] == 2


@pytest.mark.parametrize(
    ("step", "beta", "expected"), [(STEP, 6, MART), (STEP, 5, MART_BETA_5), (2 * STEP, 6, MART_STEP_4)]
)
def test_mart(step, beta, expected):
    check(train(methods.MART(EPS, step, STEPS, beta=beta), network()), expected)


def test_at_awp():
    """The authors also run the network to choose among restarts, of which there is one: statistics aside."""
    model = network()
    found = train(methods.PGDATAWP(EPS, STEP, STEPS, gamma=0.01), model)
    check(found, AT_AWP, "x_adv", "loss", "gradients", "stepped", "weights")
    assert found["batches"] == AT_AWP["batches"] - 1


def test_trades_awp():
    method = methods.TRADESAWP(EPS, STEP, STEPS, gamma=0.005)
    method.start_epoch(network(), 10)
    found = train(method, network())
    check(found, TRADES_AWP, "x_adv", "loss", "gradients", "stepped", "weights")


def cropped(first, fill):
    """Four images of 32 x 32, cropped and flipped, their labels and the transform."""
    x, y = batch(4, 32)
    rows, cols, flips = (torch.tensor(column) for column in zip(*crops(4, first), strict=True))
    transform = CropFlip(rows, cols, flips, 4)
    return show(transform, x, fill), y, transform


def stored_steps(method, expected, fill, divisor=1):
    """A step per entry on the next crops, with one optimiser; checks all but the buffer and what is the method's own.

    The authors count epochs from 1.
    """
    model = network()
    optimizer = MSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    method.prepare(DatasetSpec(torch.arange(4), (3, 32, 32), padding=4))
    for k, values in enumerate(expected):
        x, y, transform = cropped(4 * k, fill)
        close(fingerprint(x), values.get("x", fingerprint(x)))
        outcome = method(model, x, y, Key(0, values.get("epoch", 1) - 1, torch.arange(4)), transform)
        optimizer.zero_grad()
        optimizer.backward(outcome.losses / divisor)
        found = {"x_adv": fingerprint(outcome.x_adv), "loss": outcome.losses.mean().item() / divisor}
        found["gradients"] = [weighted(p.grad) for p in model.parameters()]
        optimizer.step()
        found["weights"] = [weighted(p) for p in model.parameters()]
        found |= {"running_mean": model[1].running_mean.tolist(), "running_var": model[1].running_var.tolist()}
        found["batches"] = model[1].num_batches_tracked.item()
        check(found, {name: values[name] for name in found.keys() & values.keys()})
        yield values


@pytest.mark.parametrize(("expected", "c"), [(ATAS, 0.01), (ATAS_C_0003, 0.003)])
def test_atas(expected, c):
    """Theirs takes the gradient of the mean over four images."""
    method = methods.ATAS(EPS, epochs=30, c=4 * c, dtype=torch.float64)
    for values in stored_steps(method, expected, fill=0):
        close((method.v.values.flatten() / 16).tolist(), values["v"])
        close(fingerprint(method.delta.values), values["delta"])


@pytest.mark.parametrize(("expected", "loss"), [(ATTA, "ce"), (ATTA_TRADES, "trades")])
def test_atta(expected, loss):
    """Theirs keeps images, ours perturbations; theirs divides the mean cross-entropy by the batch size once more."""
    method = methods.ATTA(EPS, STEP, STEPS, loss=loss, dtype=torch.float64, as_published=True)
    canvas = F.pad(batch(4, 32)[0], (4, 4, 4, 4), value=0.5)
    for values in stored_steps(method, expected, fill=0.5, divisor=4 if loss == "ce" else 1):
        close(fingerprint(canvas + method.delta.values), values["delta"])


def test_entropy_sgd():
    model = network()
    optimizer = EntropySGD(
        model.parameters(),
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        inner_steps=5,
        noise=1e-4,
        gamma0=0.03,
        as_published=True,
    )
    # The authors subtract the noise.
    optimizer.normals.like = lambda tensors: [-normal_noise(t.shape) for t in tensors]
    batches = (batch(phase=t % 4) for t in range(18))

    def closure():
        x, y = next(batches)
        return F.cross_entropy(model(x), y, reduction="none")

    for expected in ENTROPY_SGD:
        found = {"loss": optimizer.step(closure).item(), "weights": [weighted(p) for p in model.parameters()]}
        found |= {"running_mean": model[1].running_mean.tolist(), "running_var": model[1].running_var.tolist()}
        found["batches"] = model[1].num_batches_tracked.item()
        check(found, expected)
