"""Quotients against their formulas, and Lemma 2's bound for a linear model."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyengm.analysis import loss_gap, smoothness
from pyengm.analysis.weight_space import gaussian_like
from pyengm.attacks import FGSM, PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.ops import Key


class Linear(nn.Module):
    """Binary: the logits are 0 and <theta, x>."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x):
        s = x.flatten(1) @ self.theta
        return torch.stack([torch.zeros_like(s), s], dim=1)


def test_lemma_2_is_a_bound_and_tight():
    theta = torch.tensor([0.6, -0.8], dtype=torch.float64)  # of norm 1
    x, eps, radius = torch.full((3, 1, 1, 2), 0.5, dtype=torch.float64), 0.1, 1e-4
    found = smoothness(
        Linear(theta), x, torch.tensor([0, 1, 1]), [ThreatModel("l2", eps)], radii=[radius], directions=30, steps=2
    )
    # Of a direction at an angle to theta, the orthogonal part alone turns theta.
    expected = []
    for seed in range(30):
        (d,) = gaussian_like([theta], seed)
        moved = theta + radius * d / d.norm()
        expected.append(eps * (moved / moved.norm() - theta).norm().item() / radius)
    np.testing.assert_allclose(found.examples[0, 0], expected, rtol=1e-6)
    bound = eps / (1 - radius)  # eps / theta_min, the norm of every weight on the way being theta_min or more
    assert found.examples.max() <= bound
    assert found.examples.max() >= 0.98 * bound  # tight: some direction is nearly orthogonal


def test_lemma_3_has_no_bound_where_a_sign_changes():
    theta = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    found = smoothness(
        Linear(theta), x, torch.tensor([1]), [ThreatModel("linf", 0.1)], radii=[1e-6, 1e-4], directions=8, steps=2
    )
    # A coordinate jumps by 2 eps, however small the move.
    np.testing.assert_allclose(found.examples[0].max(axis=1), [0.2 / 1e-6, 0.2 / 1e-4], rtol=1e-6)


def test_quotients_are_their_formulas(net, images, labels, figure_text):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = smoothness(
        net, images, labels, [None, ThreatModel("linf", 0.1)], radii=[0.1], directions=2, steps=5, batch_size=5
    )
    assert found.gradient.shape == found.examples.shape == (2, 1, 2)
    params = list(net.parameters())
    attack = PGD(0.1, 0.05, 5, random_start=False)

    def look():
        x = attack(net, images, labels)
        grads = torch.autograd.grad(cross_entropy(net(x), labels), params)
        return torch.cat([g.flatten() for g in grads]), x

    here = look()
    for d in range(2):
        direction = gaussian_like(params, d)
        length = torch.cat([t.flatten() for t in direction]).norm()
        for p, move in zip(params, direction, strict=True):
            p.data += 0.1 * move / length
        there = look()
        net.load_state_dict(before)
        assert found.gradient[1, 0, d] == pytest.approx((there[0] - here[0]).norm().item() / 0.1, rel=1e-6)
        moved = (there[1] - here[1]).flatten(1).norm(dim=1).mean().item()
        assert found.examples[1, 0, d] == pytest.approx(moved / 0.1, rel=1e-6)
    assert (found.examples[0] == 0).all()
    assert "weights" in figure_text(found.plot())
    with pytest.raises(ConfigError, match="radius > 0"):
        smoothness(net, images, labels, [None], radii=[0.0])


def test_loss_gap(net, two_nets, images, labels, figure_text):
    strong, weak = PGD(0.1, 0.03, 5), FGSM(0.1)
    found = loss_gap(net, images, labels, strong, weak, batch_size=5, seed=1)
    key = Key(1, 0, torch.arange(12))
    a = cross_entropy(net(strong(net, images, labels, key=key)), labels, reduction="none").detach()
    b = cross_entropy(net(weak(net, images, labels)), labels, reduction="none").detach()
    np.testing.assert_allclose(found.gap, a - b, rtol=1e-9, atol=1e-12)
    assert found.ratio == pytest.approx((a.mean() / b.mean()).item())
    other = two_nets[1][1]
    found = loss_gap(net, images, labels, None, None, model_b=other)
    np.testing.assert_allclose(found.loss_b, cross_entropy(other(images), labels, reduction="none").detach(), rtol=1e-9)
    assert "a less b" in figure_text(found.plot())
