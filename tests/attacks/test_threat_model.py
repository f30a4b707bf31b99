"""Threat models: projections and random starts."""

import math

import pytest
import torch
from helpers.attacked import EPS, batch, both_norms, distances, key_for

from pyengm.attacks import ThreatModel


@both_norms
def test_project(norm):
    x, _ = batch()
    threat = ThreatModel(norm, EPS[norm])
    far = x + torch.randn_like(x)
    near = threat.project_(far.clone(), x)
    assert distances(near, x, norm).max() <= threat.eps + 1e-6
    inside = (x + (near - x) / 2).clamp(0, 1)
    torch.testing.assert_close(threat.project_(inside.clone(), x), inside, rtol=0, atol=1e-6)
    assert threat.project_(x.clone(), x).equal(x)


def test_random_start_is_uniform_in_the_linf_ball():
    x = torch.zeros(500, 1, 8, 8, dtype=torch.float64)
    noise = ThreatModel("linf", 0.1).uniform(x, key_for(500)) / 0.1
    assert noise.min() >= -1
    assert noise.max() <= 1
    share = torch.histc(noise, 10, -1, 1) / noise.numel()
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / noise.numel())  # 5 standard deviations of a bin's share


@pytest.mark.parametrize("d", [2, 3])
def test_random_start_is_uniform_in_the_l2_ball(d):
    x = torch.zeros(20_000, d, dtype=torch.float64)
    noise = ThreatModel("l2", 2.0).uniform(x, key_for(len(x))) / 2
    radius = noise.norm(dim=1)
    assert radius.max() <= 1 + 1e-6  # the draws are float32
    # P(radius <= r) = r^d, and every direction alike; the bound is the 1e-6 quantile of Kolmogorov's statistic.
    volume = (radius**d).sort().values
    steps = (torch.arange(len(x)) + 0.5) / len(x)
    assert (volume - steps).abs().max() < 2.7 / math.sqrt(len(x))
    assert noise.mean(dim=0).abs().max() < 5 / math.sqrt(len(x) * (d + 2))


def test_restarts_draw_anew():
    x = torch.zeros(4, 1, 8, 8)
    for norm, eps in EPS.items():
        first, second = (ThreatModel(norm, eps).uniform(x, key_for(4), draw=draw) for draw in (0, 1))
        assert (first - second).flatten(1).norm(dim=1).min() > eps / 10


def test_threat_reads_well():
    assert str(ThreatModel("linf", 0.25)) == "L-infinity, eps = 0.25"
    assert str(ThreatModel("l2", 0.5)) == "L2, eps = 0.5"
