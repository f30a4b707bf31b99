"""Muon against its published steps, torch.optim.Muon and torch.optim.SGD."""

import math

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, same_bits, through_a_file
from torch import nn
from torch.nn import functional as F

import pyengm
from pyengm import ENGM, MSGD, Muon
from pyengm.errors import ConfigError
from pyengm.methods import PGDAT, TRADES
from pyengm.optim.muon import newton_schulz
from pyengm.pergrad import exact_norms
from pyengm.training.steps.train_step import train_step


def matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quintic(value, steps=5):
    for _ in range(steps):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (9, 2), (1, 5), (6, 1)])
@pytest.mark.parametrize("steps", [1, 5])
def test_newton_schulz_is_the_quintic_of_the_singular_values(shape, steps):
    given = matrix(*shape)
    u, s, vh = torch.linalg.svd(given, full_matrices=False)
    expected = u @ torch.diag(torch.tensor([quintic(v, steps) for v in (s / s.norm()).tolist()])).double() @ vh
    found = newton_schulz(given, steps, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(newton_schulz(1e6 * given, steps, dtype=torch.float64), found)


def test_newton_schulz_makes_singular_values_near_one():
    found = torch.linalg.svdvals(newton_schulz(matrix(32, 20, dtype=torch.float32)))
    assert found.min() > 0.5
    assert found.max() < 1.3
    assert newton_schulz(torch.zeros(3, 5)).equal(torch.zeros(3, 5))


class Matrices(nn.Module):
    """Two-dimensional weights alone, as torch.optim.Muon takes them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((64, 20), (20, 30), (30, 10))))

    def forward(self, x):
        return self.layers(x.flatten(1))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_matrices_as_in_torch():
    plain, model = Matrices(), Matrices()
    expected = torch.optim.Muon(plain.parameters(), lr=0.03, momentum=0.9, weight_decay=0.1)
    optimizer = Muon(model.parameters(), 0.03, 0.9, 0.1, scale=1.0, ends=True)
    for seed in range(4):
        x, y = images_and_labels(7, seed, torch.float32)
        expected.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        expected.step()
        optimizer.zero_grad()
        optimizer.backward(losses_of(model, x, y))
        optimizer.step()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # roundings of float32 weights below 1


@pytest.mark.parametrize("alpha", [math.inf, 0.5])
def test_convolutions_are_matrices_and_the_rest_takes_sgd(alpha):
    """cnn4 has two convolutions and two dense layers: the second and the third are orthogonalised."""
    model, rest = cnn4("gn", torch.float32), cnn4("gn", torch.float32)
    optimizer = Muon(model.parameters(), 0.1, 0.9, 0.01, alpha=alpha, scale=0.3)
    sgd = ENGM(rest.parameters(), 0.1, 0.9, 0.01, alpha=alpha)
    names = [name for name, p in model.named_parameters() if any(p is q for q in optimizer.matrices())]
    weights = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert names == weights[1:3]
    moments = {}
    for seed in range(3):
        x, y = images_and_labels(6, seed, torch.float32)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        rest.load_state_dict(model.state_dict())  # SGD of all, from the same weights
        for one, net in ((optimizer, model), (sgd, rest)):
            one.zero_grad()
            one.backward(losses_of(net, x, y))
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        sgd.step()
        assert all(p.grad.equal(grads[name]) for name, p in model.named_parameters())
        for name, p in model.named_parameters():
            if name not in names:
                assert p.equal(dict(rest.named_parameters())[name]), name
                continue
            moments[name] = torch.lerp(moments.get(name, torch.zeros_like(p)), grads[name], 1 - 0.9)
            update = torch.lerp(grads[name], moments[name], 0.9).reshape(len(p), -1)
            factor = 0.03 * math.sqrt(max(1, update.shape[0] / update.shape[1]))
            expected = (1 - 0.03 * 0.01) * before[name] - factor * newton_schulz(update).view(p.shape)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_clipping_is_that_of_engm():
    model, (x, y) = cnn4("gn", torch.float64), images_and_labels(6, 1)
    norms = exact_norms(losses_of(model, x, y), list(model.parameters()))
    alpha = norms.median().item()
    used = []
    for kind in (ENGM, Muon):
        model.zero_grad()
        used.append(kind(model.parameters(), alpha=alpha).backward(losses_of(model, x, y)))
        used.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(used[2].weights, used[0].weights)
    assert (used[2].weights < 1).any()
    assert all(a.equal(b) for a, b in zip(used[1], used[3], strict=True))


@pytest.mark.parametrize("alpha", [math.inf, 0.5])
@pytest.mark.parametrize("method", [PGDAT(0.1, steps=1), TRADES(0.1, steps=1)])
@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_trains_with_methods(alpha, method, norm):
    model = cnn4(norm, torch.float32)
    optimizer, (x, y) = Muon(model.parameters(), 0.05, alpha=alpha), images_and_labels(16, 1, torch.float32)
    losses = [train_step(method, model, optimizer, x, y)[0][0].losses.mean().item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


def test_state():
    def run(model, optimizer, seeds):
        for seed in seeds:
            x, y = images_and_labels(6, seed, torch.float32)
            optimizer.zero_grad()
            optimizer.backward(losses_of(model, x, y))
            optimizer.step()

    whole, part = cnn4("gn", torch.float32), cnn4("gn", torch.float32)
    first, second = Muon(whole.parameters()), Muon(part.parameters())
    run(whole, first, range(4))
    run(part, second, range(2))
    resumed = Muon(part.parameters(), scale=0.7, ns_steps=2)
    resumed.load_state_dict(through_a_file(second.state_dict()))
    assert (resumed.scale, resumed.ns_steps) == (0.2, 5)
    run(part, resumed, range(2, 4))
    assert same_bits(whole, part)


def test_frozen_and_unused_parameters():
    model, (x, y) = cnn4("gn", torch.float32), images_and_labels(6, 1, torch.float32)
    weights = [p for p in model.parameters() if p.dim() > 1]
    weights[1].requires_grad_(False)
    optimizer, before = Muon(model.parameters()), weights[1].clone()
    optimizer.backward(losses_of(model, x, y))
    optimizer.step()
    assert weights[1].equal(before)
    assert pyengm.Muon is Muon
    assert MSGD(model.parameters()).state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale is 0"),
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"ends": 1}, "ends is 1"),
        ({"alpha": 0}, "alpha is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Muon(cnn4().parameters(), **options)
