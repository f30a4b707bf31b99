"""Clipping under an optimiser of torch: what is fitted under batch norm is kept for it and its parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM
from pyengm.methods import PGDAT
from pyengm.optim.any_optimizer import backward_for
from pyengm.pergrad import NormEstimator
from pyengm.training.steps.train_step import train_step

N, ALPHA = 12, 0.5


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5)).train()


def losses(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.cross_entropy(model(torch.randn(N, 1, 8, 8, generator=generator)), torch.arange(N) % 5, reduction="none")


def clipped(model, optimizer, seed):
    return norms_of(backward_for(optimizer, losses(model, seed), alpha=ALPHA))


def norms_of(stats):
    assert stats is not None
    return stats.norms


@pytest.fixture
def fits(monkeypatch):
    """The estimators that fitted, in order."""
    found = []
    take = NormEstimator._take_fit

    def counted(self, *args):
        found.append(self)
        return take(self, *args)

    monkeypatch.setattr(NormEstimator, "_take_fit", counted)
    return found


def test_fits_are_kept_from_call_to_call(fits):
    """As often as under ENGM, and to the same norms."""
    model = network()
    engm = ENGM(model.parameters(), lr=0.0, alpha=ALPHA)
    expected = [norms_of(engm.backward(losses(model, seed))) for seed in range(9)]
    count = len(fits)
    assert count < 9
    fits.clear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    found = [clipped(model, optimizer, seed) for seed in range(9)]
    assert len(fits) == count
    assert len(set(map(id, fits))) == 1
    torch.testing.assert_close(found, expected)


def test_steps_of_training_keep_fits(fits):
    model, images = network(), torch.rand(N, 1, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(6):
        train_step(PGDAT(0.1, steps=1), model, optimizer, images, torch.arange(N) % 5, alpha=ALPHA)
    assert 1 <= len(fits) < 6


def test_optimizers_share_no_fit(fits):
    model = network()
    for _ in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        clipped(model, optimizer, 0)
        clipped(*copy.deepcopy((model, optimizer)), 0)
    assert len(set(map(id, fits))) == 4


def test_other_parameters_are_fitted_anew(fits):
    """Of another model with the same structure, by an optimiser that has them from now on."""
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipped(model, optimizer, 0)
    clipped(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    torch.testing.assert_close(clipped(other, optimizer, 0), clipped(model, torch.optim.SGD(model.parameters()), 0))
    assert fits[-1] is not fits[0]
    other[0].requires_grad_(False)
    clipped(other, optimizer, 0)
    assert len(set(map(id, fits))) == 4
