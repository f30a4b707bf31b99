"""Analyses of per-example gradients, against one backward pass for every example in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm.analysis import gradient_statistics, hessian_top, norm_correlation, weight_errors
from pyengm.analysis.norm_correlation import fit_line
from pyengm.analysis.weight_errors import replay
from pyengm.attacks import PGD
from pyengm.errors import ConfigError
from pyengm.models import build
from pyengm.optim import AENGM


def problem(norm_layer="bn", n=20):
    torch.manual_seed(0)
    model = build("cnn4", in_channels=1, image_size=8, width=2, norm_layer=norm_layer).double()
    x, y = torch.rand(n, 1, 8, 8, dtype=torch.float64), torch.arange(n) % 10
    model.train()(x)
    return model, x, y


def exact_gradients(model, x, y, size):
    """(n, d): the gradient of each loss in its batch; and those of the batch's summed loss in the images."""
    rows, inputs = [], []
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        xs = xs.clone().requires_grad_()
        losses = F.cross_entropy(model(xs), ys, reduction="none")
        for loss in losses:
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
        inputs.append(torch.autograd.grad(losses.sum(), xs)[0].flatten(1))
    return torch.stack(rows), torch.cat(inputs)


@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("norm_layer", ["bn", "gn"])
def test_statistics(bn, norm_layer):
    model, x, y = problem(norm_layer)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    found = gradient_statistics(model, x, y, bn=bn, batch_size=8)
    assert all(model.state_dict()[name].equal(t) for name, t in state.items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    grads, inputs = exact_gradients(model.train(bn == "train"), x, y, 8)
    norms = grads.norm(dim=1)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-9)
    np.testing.assert_allclose(found.input_norms, inputs.norm(dim=1), rtol=1e-9)
    assert found.mu == pytest.approx(norms.mean().item(), rel=1e-9)
    assert found.sigma2 == pytest.approx((grads - grads.mean(0)).square().sum(1).mean().item(), rel=1e-9)
    assert found.mean_norm == pytest.approx(grads.mean(0).norm().item(), rel=1e-9)


def test_statistics_under_attack():
    model, x, y = problem("gn")
    attack = PGD(0.1, 0.05, 3, loss="ce", random_start=False)
    found = gradient_statistics(model, x, y, attack=attack, batch_size=8)
    natural = gradient_statistics(model, attack(model, x, y), y, batch_size=8)
    np.testing.assert_allclose(found.norms, natural.norms, rtol=1e-9)
    again = gradient_statistics(model, x, y, attack=PGD(0.1, 0.05, 3), batch_size=5, seed=1)
    other = gradient_statistics(model, x, y, attack=PGD(0.1, 0.05, 3), batch_size=20, seed=1)
    np.testing.assert_allclose(again.norms, other.norms, rtol=1e-9)  # random starts are of images, not of batches


def test_correlation():
    model, x, y = problem()
    found = norm_correlation(model, x, y, bn="eval", batch_size=8)
    a, b = found.scatter.T
    centred = (a - a.mean(), b - b.mean())
    pearson = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert found.pearson == pytest.approx(pearson)
    slope = (centred[0] * centred[1]).sum() / (centred[0] ** 2).sum()
    assert found.slope == pytest.approx(slope)
    assert found.intercept == pytest.approx(b.mean() - slope * a.mean())
    line = fit_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    assert (line.slope, line.intercept, line.pearson) == pytest.approx((2.0, 1.0, 1.0))


def test_weight_errors_are_those_of_the_optimizer():
    """The weights that A-ENGM itself uses, on a model that does not change."""
    model, x, y = problem("gn", n=24)
    model.eval()
    alpha, tau, size = 0.7, 2, 4
    optimizer = AENGM(model.parameters(), lr=0.0, alpha=alpha, tau=tau, norms="exact")
    predicted, exact = [], []
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        xs = xs.clone().requires_grad_()
        losses = F.cross_entropy(model(xs), ys, reduction="none")
        predicted.append(optimizer.backward(losses, inputs=xs).weights)
        optimizer.zero_grad()
        grads, _ = exact_gradients(model, xs.detach(), ys, size)
        exact.append((alpha / grads.norm(dim=1)).clamp(max=1))
    predicted, exact = torch.cat(predicted), torch.cat(exact)
    found = weight_errors(model, x, y, alphas=[alpha], taus=[tau], bn="eval", batch_size=size)
    assert found.absolute[0, 0] == pytest.approx((predicted - exact).abs().mean().item(), rel=1e-6)
    assert found.relative[0, 0] == pytest.approx((predicted / exact - 1).abs().mean().item(), rel=1e-6)
    perfect = replay(np.ones(4), np.ones(4), [1e9], [1], 0.7, 2)
    assert perfect.absolute[0, 0] == 0


def test_the_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.rand(10, 1, 2, 2, dtype=torch.float64), torch.arange(10) % 3
    params = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    first = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [torch.cat([h.flatten() for h in torch.autograd.grad(g, params, retain_graph=True)]) for g in first]
    dense = torch.linalg.eigvalsh(torch.stack(rows)).flip(0)
    found = hessian_top(model, x, y, k=3, steps=27, batch_size=4)
    np.testing.assert_allclose(found.eigenvalues, dense[:3], rtol=1e-8)
    assert (found.residuals < 1e-6).all()
    short = hessian_top(model, x, y, k=1, steps=5, batch_size=4)
    assert abs(short.eigenvalues[0] - dense[0].item()) <= short.residuals[0] + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: gradient_statistics(m, x, y, bn="batch"), "bn is 'batch'"),
        (lambda m, x, y: gradient_statistics(m, x, y, batch_size=0), "batch_size is 0"),
        (lambda m, x, y: weight_errors(m, x, y, alphas=[0.0]), "alphas above 0"),
        (lambda m, x, y: weight_errors(m, x, y, taus=[0]), "taus of 1"),
        (lambda m, x, y: hessian_top(m, x, y, k=0), "k and steps"),
    ],
)
def test_values_out_of_range(call, message):
    with pytest.raises(ConfigError, match=message):
        call(*problem("gn"))


def test_plots():
    model, x, y = problem("gn")
    for found in (
        gradient_statistics(model, x, y),
        norm_correlation(model, x, y),
        weight_errors(model, x, y),
        hessian_top(model, x[:5], y[:5], k=2, steps=4),
    ):
        axes = found.plot()
        assert axes.get_xlabel()
        assert axes.get_ylabel()
