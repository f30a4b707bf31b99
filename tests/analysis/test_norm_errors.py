"""Errors of estimated norms: zero for exact ones, and those of their definition for others."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyengm.analysis import norm_errors
from pyengm.pergrad import NormEstimator, exact_norms


def batch(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), layer, nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 12, dtype=torch.float64), torch.arange(12) % 3
    return cross_entropy(model(x), y, reduction="none"), list(model.parameters())


def test_estimates_of_independent_examples_are_exact():
    losses, params = batch(nn.LayerNorm(6))
    errors = norm_errors(losses, params)
    assert list(errors) == ["corrected", "lowrank"]
    for found in errors.values():
        # Sums in another order, in float64.
        assert found.median == pytest.approx(0, abs=1e-12)
        assert found.bias == pytest.approx(0, abs=1e-12)
        assert found.correlation == pytest.approx(1)
        assert found.update == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_errors_are_their_formulas(alpha):
    losses, params = batch(nn.BatchNorm1d(6))
    found = norm_errors(losses, params, {"fitted": NormEstimator("corrected")}, alpha)["fitted"]
    exact, estimator = exact_norms(losses, params), NormEstimator("corrected")
    norms = estimator.norms(losses, params, estimator.prepare(losses, params))
    relative = norms / exact - 1
    assert relative.abs().max() > 1e-3  # otherwise the test shows nothing
    assert found.median == pytest.approx(relative.abs().median().item())
    assert found.bias == pytest.approx(relative.median().item())
    assert found.correlation == pytest.approx(torch.corrcoef(torch.stack([norms, exact]))[0, 1].item())
    alpha = exact.median() if alpha is None else alpha
    weights, true_weights = (alpha / v.clamp(min=alpha) for v in (norms, exact))
    rows = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    gradients = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    expected = ((weights - true_weights) @ gradients).norm() / (true_weights @ gradients).norm()
    assert found.update == pytest.approx(expected.item(), rel=1e-6)


def test_frozen_parameters_are_ignored():
    losses, params = batch(nn.BatchNorm1d(6))
    expected = norm_errors(losses, params[:2] + params[-2:])
    assert norm_errors(losses, [*params[:2], torch.zeros(3), *params[-2:]]) == expected
