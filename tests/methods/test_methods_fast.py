"""One-step methods since FGSM-RS against their formulas, example by example, in plain torch and float64."""

import io
import math

import numpy as np
import pytest
import torch
from helpers.reference_attacks import (
    EPS,
    MODES,
    batch,
    check_in_threat_model,
    check_pass,
    gradient_at,
    mode,
    network,
    noise,
    norms_of,
    project,
    step,
)
from helpers.small_problems import NanGradient
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods.aaer import AAER
from pyengm.methods.elle import ELLE
from pyengm.methods.multi_grad import MultiGrad
from pyengm.methods.n_fgsm import NFGSM
from pyengm.methods.slat import SLAT, first_layers
from pyengm.methods.zero_grad import ZeroGrad, without_small
from pyengm.models import build
from pyengm.ops import Key, Purpose, philox_uniform
from pyengm.training.steps.train_step import train_step

both_norms = pytest.mark.parametrize("norm", EPS)
every_mode = pytest.mark.parametrize("bn", MODES)


def ce(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def direction(g, norm):
    return g.sign() if norm == "linf" else g / norms_of(g)


# N-FGSM


@both_norms
@every_mode
@pytest.mark.parametrize("times", [0.0, 2.0])
def test_n_fgsm_is_its_formula(norm, bn, times):
    model, twin, (x, y, key) = network(), network(), batch()
    before = x.clone()
    outcome = NFGSM(EPS[norm], noise=times, norm=norm, bn=bn)(model, x, y, key)
    start = (x + times * noise(x, key, norm)).clamp(0, 1)
    with mode(twin, bn):
        x_adv = (start + EPS[norm] * direction(gradient_at(twin, start, y), norm)).clamp(0, 1)
    check_pass(outcome, ce(twin, x_adv, y), x_adv, model, twin)
    assert x.equal(before)
    farthest = (x_adv - x).abs().max() if norm == "linf" else norms_of(x_adv - x).max()
    assert (farthest > 1.01 * EPS[norm]) == (times > 0)  # beyond the ball


# ZeroGrad and MultiGrad


@both_norms
@every_mode
def test_zero_grad_is_its_formula(norm, bn):
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = ZeroGrad(EPS[norm], norm=norm, bn=bn)(model, x, y, key)
    start = project(x + noise(x, key, norm), x, norm)
    with mode(twin, bn):
        g = gradient_at(twin, start, y)
    for one in g:
        one[one.abs() < torch.quantile(one.abs().flatten(), 0.35)] = 0
    assert (g == 0).double().mean() == pytest.approx(0.35, abs=0.02)
    x_adv = step(start, g, x, norm, 2 * EPS[norm])
    check_pass(outcome, ce(twin, x_adv, y), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.35, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (4, 3, 5, 5)])
def test_quantiles_are_those_of_torch(quantile, shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = g.abs().flatten(1)
    bound = torch.quantile(sizes, quantile, dim=1, keepdim=True)
    kept = without_small(g, quantile).flatten(1)
    near = (sizes - bound).abs() < 1e-12  # where rounding of the interpolation decides
    assert (kept != 0)[~near].equal((sizes >= bound)[~near])


@both_norms
@pytest.mark.parametrize("samples", [1, 3])
def test_multi_grad_is_its_formula(norm, samples):
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = MultiGrad(EPS[norm], samples=samples, norm=norm)(model, x, y, key)
    grads = []
    for draw in range(samples):
        with mode(twin, "train"):
            grads.append(gradient_at(twin, project(x + noise(x, key, norm, draw=draw), x, norm), y))
    signs = torch.stack([g.sign() for g in grads])
    agree = (signs == signs[0]).all(0)
    assert agree.all() == (samples == 1)
    total = sum(direction(g, norm) for g in grads) * agree
    x_adv = step(x, total, x, norm, 2 * EPS[norm])
    check_pass(outcome, ce(twin, x_adv, y), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


# AAER


def aaer(model, x, y, key, norm, projected, weights):
    """Loss of the batch, and images, with the three terms as in the authors' code."""
    eps = EPS[norm]
    start = (x + noise(x, key, norm) * (1 if projected else 2)).clamp(0, 1)
    start = project(start, x, norm) if projected else start
    with mode(model, "train"):
        leaf = start.clone().requires_grad_()
        logits = model(leaf)
        (g,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    moved = start + (1.25 if projected else 1.0) * eps * direction(g, norm)
    x_adv = project(moved, x, norm) if projected else moved.clamp(0, 1)
    before, out = F.cross_entropy(logits, y, reduction="none").detach(), model(x_adv)
    losses = F.cross_entropy(out, y, reduction="none")
    abnormal = [i for i in range(len(x)) if before[i] > losses[i]]
    normal = [i for i in range(len(x)) if i not in abnormal]
    loss = losses.mean()
    if abnormal and normal:
        variation = [((logits[i].detach() - out[i]) ** 2).sum() for i in range(len(x))]
        ours = sum(variation[i] for i in abnormal) / len(abnormal)
        theirs = sum(variation[i].item() for i in normal) / len(normal)
        fall = sum(before[i] - losses[i].detach() for i in abnormal) / len(abnormal)
        loss = loss + len(abnormal) / len(x) * (weights[0] * fall + weights[1] * max(ours - theirs, 0))
    return loss, x_adv, len(abnormal)


class Wavy(nn.Module):
    """Losses that rise and fall within the ball, so that attacks overshoot."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 10)

    def forward(self, x):
        return self.head(torch.sin(10 * self.norm(self.conv(x))).flatten(1))


def wavy():
    torch.manual_seed(0)
    return Wavy().double()


@both_norms
@pytest.mark.parametrize("projected", [True, False])
def test_aaer_is_its_formula(norm, projected):
    model, twin, (x, y, key) = wavy(), wavy(), batch(12)
    outcome = AAER(EPS[norm], projected=projected, norm=norm)(model, x, y, key)
    published = (2.5, 1.5) if projected else (1.5, 0.15)
    loss, x_adv, abnormal = aaer(twin, x, y, key, norm, projected, published)
    assert 0 < abnormal < 12
    torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses.mean(), loss, rtol=1e-9, atol=0)
    ours = torch.autograd.grad(outcome.losses.mean(), list(model.parameters()))
    for a, b in zip(ours, torch.autograd.grad(loss, list(twin.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_aaer_without_abnormal_examples_is_the_cross_entropy():
    model, (x, y, key) = network(), batch()
    outcome = AAER(1e-4, ce_weight=50.0, variation_weight=50.0)(model, x, y, key)
    torch.testing.assert_close(outcome.losses, F.cross_entropy(outcome.logits, y, reduction="none"), rtol=0, atol=0)


# ELLE


def elle_points(x, key, norm):
    a, b = (x + noise(x, key, norm, Purpose.SECOND, draw) for draw in range(2))
    t = philox_uniform(key.index, (1, 1, 1), purpose=Purpose.MIX, seed=key.seed, epoch=key.epoch).to(x)
    return a, b, t


def curvature(model, x, y, key, norm):
    """Of each example, from the batch of all points."""
    a, b, t = elle_points(x, key, norm)
    n = len(x)
    losses = ce(model, torch.cat([a, b, (1 - t) * a + t * b]), y.repeat(3))
    return torch.stack([(losses[2 * n + i] - (1 - t[i]) * losses[i] - t[i] * losses[n + i]) ** 2 for i in range(n)])


@both_norms
@every_mode
def test_elle_is_its_formula(norm, bn):
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = ELLE(EPS[norm], weight=300.0, norm=norm, bn=bn)(model, x, y, key)
    with mode(twin, bn):
        x_adv = step(x, gradient_at(twin, x, y), x, norm, EPS[norm])
    losses = ce(twin, x_adv, y)
    check_pass(outcome, losses + 300 * curvature(twin, x, y, key, norm).flatten(), x_adv, model, twin)


def test_elle_adapts_its_weight():
    method, model = ELLE(0.1, adaptive=True, weight=40.0, decay=0.5, sensitivity=0.5), network()
    history, weight, seen = [], 0.0, set()
    for epoch in range(12):
        x, y, key = batch(seed=epoch, epoch=epoch)
        outcome = method(model, x, y, key)
        twin = network()
        twin.load_state_dict(model.state_dict())
        now = curvature(twin, x, y, key, "linf").mean().item()
        plain = F.cross_entropy(outcome.logits, y).item()
        assert outcome.losses.mean().item() == pytest.approx(plain + weight * now, rel=1e-6)
        jump = len(history) > 2 and now > np.mean(history) + 0.5 * np.std(history)
        weight = 40.0 if jump else 0.5 * weight
        seen.add(jump)
        history.append(now)
        file = io.BytesIO()  # the state is loaded into another object
        torch.save(method.state_dict(), file)
        file.seek(0)
        method = ELLE(0.1, adaptive=True, weight=40.0, decay=0.5, sensitivity=0.5)
        method.load_state_dict(torch.load(file, weights_only=True))
    assert seen == {True, False}


def test_published_weights_of_elle():
    weights = {2: 1000, 8: 1000, 10: 5000, 20: 5000, 22: 10000, 26: 10000}
    assert {pixels: ELLE(pixels / 255).weight for pixels in weights} == weights
    assert ELLE(8 / 255, adaptive=True).weight == 4000
    assert ELLE(8 / 255).state_dict() == {}


# SLAT


def slat(model, x, y, norm, bn):
    """The network by hand: its first convolution, and, without a stage, nothing else."""
    eps, convolution = EPS[norm], model.block1[0]
    rest = nn.Sequential(model.block1[1:], *list(model.children())[1:])
    with mode(model, bn):
        leaf = x.clone().requires_grad_()
        h = convolution(leaf)
        h.retain_grad()
        F.cross_entropy(rest(h), y, reduction="sum").backward()
    model.zero_grad()
    x_adv = step(x, leaf.grad, x, norm, 0.9 * eps)
    h_new = convolution(x_adv)
    move = eps * direction(h.grad, norm)
    low, high = h_new.detach().amin((2, 3), keepdim=True), h_new.detach().amax((2, 3), keepdim=True)
    moved = torch.minimum(torch.maximum(h_new.detach() + move, low), high)
    assert (moved == high).sum() > 4 * len(x)  # clipped, which makes ties for max-pooling
    return F.cross_entropy(rest(moved + (h_new - h_new.detach())), y, reduction="none"), x_adv


@both_norms
@every_mode
def test_slat_is_its_formula(norm, bn):
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = SLAT(EPS[norm], norm=norm, bn=bn)(model, x, y, key)
    losses, x_adv = slat(twin, x, y, norm, bn)
    check_pass(outcome, losses, x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_slat():
    for name, expected in {
        "preact_resnet18": ["stem", "stage1"],
        "resnet18": ["stem.0", "stage1"],
        "wrn_28_10": ["stem", "stage1"],
        "cnn8": ["block1.0", "block1"],
        "cnn4": ["block1.0"],
    }.items():
        for mean in (None, (0.5, 0.5, 0.5)):
            model = build(name, width=4, mean=mean, std=mean)
            names = {module: name for name, module in model.named_modules()}
            assert [
                names[layer].removeprefix("network.").removeprefix("1.") for layer in first_layers(model)
            ] == expected
    model, (x, y, key) = network(), batch()
    plain = SLAT(0.1)(model, x, y, key)
    torch.testing.assert_close(SLAT(0.1, layers="block1.0")(network(), x, y, key).losses, plain.losses)
    assert not SLAT(0.1, layers="block1.0+block2")(network(), x, y, key).losses.allclose(plain.losses)
    for layers, message in (("stem", "no modules stem"), ("head", r"expected one of shape")):
        with pytest.raises(ConfigError, match=message):
            SLAT(0.1, layers=layers)(model, x, y, key)
    with pytest.raises(ConfigError, match="no first layer"):
        first_layers(nn.Flatten())


# All of them

KINDS = (NFGSM, ZeroGrad, MultiGrad, AAER, ELLE, SLAT)


@both_norms
@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
@pytest.mark.parametrize("kind", KINDS)
def test_train_step(norm, optimizer, kind):
    method, model, (x, y, key) = kind(EPS[norm], norm=norm), network("gn", torch.float32), batch(dtype=torch.float32)
    method.needs_input_grad = True
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer(model.parameters(), lr=0.01), x, y, key)
    assert outcome.x_adv.grad.abs().sum() > 0
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@both_norms
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_and_anonymous_images(norm, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()
    x, y, key = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6), Key(3, 1, torch.arange(6))
    expected = kind(EPS[norm], norm=norm)(model, x, y, key)
    layouts = (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3))
    for same in (*layouts, x.clone().requires_grad_()):
        outcome = kind(EPS[norm], norm=norm)(model, same, y, key)
        torch.testing.assert_close(outcome.x_adv, expected.x_adv, rtol=0, atol=1e-9)
        torch.testing.assert_close(outcome.losses, expected.losses, rtol=1e-6, atol=1e-9)
    assert kind(EPS[norm], norm=norm)(model, x, y).losses.isfinite().all()


@both_norms
@pytest.mark.parametrize("kind", KINDS)
def test_no_radius_no_perturbation(norm, kind):
    model, (x, y, key) = network(), batch()
    outcome = kind(0.0, norm=norm)(model, x, y, key)
    assert outcome.x_adv.equal(x)
    torch.testing.assert_close(outcome.losses, F.cross_entropy(outcome.logits, y, reduction="none"))


@both_norms
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_what_is_not_finite_raises(norm, kind):
    x, y, key = batch()
    with pytest.raises(NonFiniteError, match="nan or infinite"):
        kind(EPS[norm], norm=norm)(NanGradient(), x, y, key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"eps": -1}, "eps"), ({"step_size": -1.0}, "step"), ({"norm": "l1"}, "known norms"), ({"bn": "off"}, "modes")],
)
def test_bad_options(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kind(**{"eps": 0.1} | arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NFGSM(0.1, noise=-1), "noise is -1"),
        (lambda: ZeroGrad(0.1, quantile=1.1), "quantile is 1.1"),
        (lambda: MultiGrad(0.1, samples=0), "samples is 0"),
        (lambda: AAER(0.1, ce_weight=math.inf), "ce_weight is inf"),
        (lambda: ELLE(0.1, decay=2), "decay is 2"),
        (lambda: ELLE(0.1, weight=-1), "weight is -1"),
    ],
)
def test_bad_options_of_one(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
