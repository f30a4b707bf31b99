"""FOSC and the attack that it controls, against a loop over the examples."""

import math

import pytest
import torch
from helpers.reference_attacks import (
    EPS,
    batch,
    check_in_threat_model,
    fosc,
    gradient_at,
    network,
    noise,
    project,
    statistics,
    step,
)
from torch import nn

from pyengm.attacks import PGD, ThreatModel
from pyengm.attacks.fosc import FOSCPGD, fosc_of
from pyengm.errors import ConfigError, DataError, NonFiniteError

both_norms = pytest.mark.parametrize("norm", EPS)


@both_norms
@pytest.mark.parametrize("bn", ["eval", "batch_stats"])
def test_fosc_is_its_formula(norm, bn):
    model, (x, y, key) = network(), batch()
    before = statistics(model)
    x_adv = project(x + noise(x, key, norm), x, norm)
    values = fosc_of(model, x_adv, x, y, ThreatModel(norm, EPS[norm]), bn=bn)
    twin = network().train(bn != "eval")
    torch.testing.assert_close(values, fosc(x_adv, gradient_at(twin, x_adv, y), x, norm), rtol=1e-10, atol=1e-12)
    assert values.min() > 0
    assert model.training
    assert all(b.equal(before[name]) for name, b in model.named_buffers())


@both_norms
def test_fosc_vanishes_at_the_maximum_of_a_linear_loss(norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x, y = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64), torch.tensor([0, 1, 1])
    threat = ThreatModel(norm, EPS[norm])
    x_adv = step(x, gradient_at(model, x, y), x, norm, EPS[norm])  # two classes: no other gradient direction
    assert fosc_of(model, x_adv, x, y, threat).abs().max() < 1e-12
    assert fosc_of(model, x, x, y, threat).min() > 0.01


def alone(model, x, y, start, origin, norm, size, steps, threshold):
    """The attack on one image in eval mode, and how many steps it takes."""
    x_adv, taken = step(start, gradient_at(model, start, y), x, norm, size), 1
    while taken < steps:
        g = gradient_at(model, x_adv, y)
        if fosc(x_adv, g, origin, norm).item() <= threshold:
            break
        x_adv, taken = step(x_adv, g, x, norm, size), taken + 1
    return x_adv, taken


def typical(model, x, y, start, origin, norm, steps):
    """A threshold that some examples reach within fewer than `steps` steps of size eps / 4, and some do not."""
    x_adv = start
    for _ in range(steps // 2):
        x_adv = step(x_adv, gradient_at(model, x_adv, y), x, norm, EPS[norm] / 4)
    middle = fosc(x_adv, gradient_at(model, x_adv, y), origin, norm).sort().values[len(x) // 2 - 1 :][:2]
    return middle.mean().item()  # no example's own value, which rounding could put on either side


@both_norms
@pytest.mark.parametrize("published", [False, True])
def test_every_example_stops_when_its_fosc_is_low_enough(norm, published):
    model, (x, y, key) = network().eval(), batch(12)
    size, steps, start = EPS[norm] / 4, 6, x + noise(x, key, norm)
    origin = start if published else x
    start = start if published else project(start, x, norm)
    threshold = typical(model, x, y, start, origin, norm, steps)
    one_by_one = [
        alone(model, *(t[i : i + 1] for t in (x, y, start, origin)), norm, size, steps, threshold)
        for i in range(len(x))
    ]
    taken = [count for _, count in one_by_one]
    assert len(set(taken)) >= 2, taken  # else the test shows nothing
    rows = []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    given = {"start": start, "origin": origin} if published else {}
    x_adv = FOSCPGD(EPS[norm], size, steps, norm=norm)(model, x, y, threshold=threshold, key=key, **given)
    handle.remove()
    torch.testing.assert_close(x_adv, torch.cat([point for point, _ in one_by_one]), rtol=0, atol=1e-9)
    check_in_threat_model(x_adv, x, norm)
    # An example is in the batch for its steps and, where it stopped early, for the gradient that stopped it.
    assert sum(rows) == sum(min(count + 1, steps) for count in taken)


@both_norms
def test_under_batch_statistics_the_stopped_stay_in_the_batch(norm):
    model, twin, (x, y, key) = network(), network(), batch(12)
    size, steps, expected = EPS[norm] / 4, 6, project(x + noise(x, key, norm), x, norm)
    threshold = typical(network(), x, y, expected, x, norm, steps)
    active, counts = torch.ones_like(y, dtype=torch.bool), []
    for k in range(steps):
        g = gradient_at(twin, expected, y)
        if k > 0:
            active = active & (fosc(expected, g, x, norm) > threshold)
        counts.append(int(active.sum()))
        moved = step(expected, g, x, norm, size)
        expected = torch.stack([m if a else e for m, a, e in zip(moved, active, expected, strict=True)])
    assert 12 > counts[3] > counts[4] > 0, counts
    x_adv = FOSCPGD(EPS[norm], size, steps, norm=norm, bn="train")(model, x, y, threshold=threshold, key=key)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, statistics(twin)[name], rtol=1e-9, atol=1e-12)


@both_norms
@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("random_start", [True, False])
def test_extreme_thresholds(norm, bn, random_start):
    (x, y, key), eps = batch(), EPS[norm]
    options = {"norm": norm, "bn": bn, "random_start": random_start}
    attack = FOSCPGD(eps, eps / 4, 4, **options)
    for threshold, steps, passes in ((-math.inf, 4, 4), (math.inf, 1, 2)):
        model, rows = network(), []
        model.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        expected = PGD(eps, eps / 4, steps, **options)(network(), x, y, key=key)
        torch.testing.assert_close(attack(model, x, y, threshold=threshold, key=key), expected, rtol=0, atol=1e-12)
        assert rows == [6] * passes


@both_norms
def test_memory_formats(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()
    x, y, key = torch.rand(8, 3, 8, 8, dtype=torch.float64), torch.arange(8), batch(8)[2]
    attack = FOSCPGD(EPS[norm], EPS[norm] / 4, 5, norm=norm)
    middle = fosc_of(model, attack(model, x, y, key=key), x, y, attack.threat).median().item()
    expected = attack(model, x, y, threshold=middle, key=key)
    last = x.contiguous(memory_format=torch.channels_last)
    result = attack(model, last, y, threshold=middle, key=key)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(attack(model, strided, y, threshold=middle, key=key), expected, rtol=0, atol=1e-9)


@both_norms
def test_images_and_model_are_unchanged(norm):
    model, (x, y, key) = network(dtype=torch.float32), batch(dtype=torch.float32)
    before, buffers = x.clone(), statistics(model)
    x_adv = FOSCPGD(EPS[norm], 0.05, 5, norm=norm)(model, x.requires_grad_(), y, threshold=0.3, key=key)
    assert not x_adv.requires_grad
    assert x.grad is None
    assert x.equal(before)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(b.equal(buffers[name]) for name, b in model.named_buffers())
    free = FOSCPGD(0.0, 0.0, 3, norm=norm)(model, x, y)
    assert free.equal(x)
    assert free.data_ptr() != x.data_ptr()


class Broken(nn.Module):
    """Finite logits with a gradient of nan, from the given forward pass on."""

    def __init__(self, sound):
        super().__init__()
        self.sound = sound

    def forward(self, x):
        self.sound -= 1
        x = x.flatten(1)[:, :10]
        return x if self.sound >= 0 else x + (x - x).abs().sqrt()


@both_norms
@pytest.mark.parametrize("sound", [0, 2])
def test_what_is_not_finite_raises(norm, sound):
    x, y, key = batch()
    with pytest.raises(NonFiniteError, match="nan or infinite"):
        FOSCPGD(EPS[norm], 0.02, 4, norm=norm)(Broken(sound), x, y, threshold=-1, key=key)
    with pytest.raises(NonFiniteError):
        fosc_of(Broken(0), x, x, y, ThreatModel(norm, 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1}, "eps"),
        ({"step_size": -1}, "step"),
        ({"step_size": math.nan}, "step"),
        ({"steps": 0}, "at least 1"),
        ({"norm": "l1"}, "known norms"),
        ({"bn": "off"}, "known modes"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        FOSCPGD(**({"eps": 0.1, "step_size": 0.1, "steps": 2} | options))


def test_bad_inputs():
    (x, y, key), attack = batch(), FOSCPGD(0.1, 0.1, 2)
    with pytest.raises(DataError):
        attack(network(), x + 1, y)
    with pytest.raises(DataError, match="start"):
        attack(network(), x, y, start=x[:1])
    with pytest.raises(DataError):
        attack(network(), x, y, origin=x[:1])
    with pytest.raises(DataError, match="key"):
        attack(network(), x[:2], y[:2], key=key)
