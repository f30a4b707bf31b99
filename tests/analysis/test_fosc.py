"""FOSC along the steps of PGD, its bins and its densities."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm.analysis import fosc_bins, fosc_distribution, fosc_in_box, fosc_trajectory
from pyengm.attacks import PGD, ThreatModel, fosc_of
from pyengm.errors import ConfigError
from pyengm.ops import Key

LINF = ThreatModel("linf", 0.3)


def problem(n=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.rand(n, 1, 2, 2, dtype=torch.float64), torch.arange(n) % 3


def gradients(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0].flatten(1)


@pytest.mark.parametrize("box", [False, True])
def test_fosc_is_the_best_vertex(box):
    """The largest <x' - x_adv, g> over the corners of the ball, or of the images in it."""
    model, x, y = problem()
    x_adv = LINF.project_(x + 0.2 * torch.randn_like(x), x)
    g = gradients(model, x_adv, y)
    low, high = ((x - 0.3).clamp(min=0), (x + 0.3).clamp(max=1)) if box else (x - 0.3, x + 0.3)
    corners = [
        torch.where(torch.tensor(bits), high.flatten(1), low.flatten(1)) for bits in product([False, True], repeat=4)
    ]
    best = torch.stack([((corner - x_adv.flatten(1)) * g).sum(1) for corner in corners]).amax(0)
    found = fosc_in_box(model, x_adv, x, y, LINF) if box else fosc_of(model, x_adv, x, y, LINF)
    torch.testing.assert_close(found.double(), best, rtol=1e-6, atol=1e-9)
    assert (fosc_in_box(model, x_adv, x, y, LINF) <= fosc_of(model, x_adv, x, y, LINF) + 1e-9).all()


def test_the_trajectory_is_that_of_pgd():
    model, x, y = problem()
    found = fosc_trajectory(model, x, y, LINF, step_size=0.1, steps=4, batch_size=4, seed=3)
    assert found.fosc.shape == found.loss.shape == found.correct.shape == (5, 6)
    for k in range(1, 5):
        x_adv = PGD(0.3, 0.1, k, loss="ce")(model, x, y, key=Key(3, 0, torch.arange(6)))
        torch.testing.assert_close(
            torch.from_numpy(found.fosc[k]), fosc_of(model, x_adv, x, y, LINF).double(), rtol=1e-6, atol=1e-9
        )
        losses = F.cross_entropy(model(x_adv), y, reduction="none").detach()
        np.testing.assert_allclose(found.loss[k], losses, rtol=1e-6)
        assert (found.correct[k] == (model(x_adv).argmax(1) == y).numpy()).all()
    start = fosc_trajectory(model, x, y, LINF, step_size=0.1, steps=0, random_start=False)
    np.testing.assert_allclose(start.loss[0], F.cross_entropy(model(x), y, reduction="none").detach(), rtol=1e-9)
    with pytest.raises(ConfigError, match="is for linf"):
        fosc_trajectory(model, x, y, ThreatModel("l2", 0.3), step_size=0.1, steps=1, box=True)
    with pytest.raises(ConfigError, match="expected 0 or more"):
        fosc_trajectory(model, x, y, LINF, step_size=0.1, steps=-1)
    assert len(found.plot()) == 2


def test_bins():
    fosc = np.array([0.01, 0.02, 0.07, 0.5])
    found = fosc_bins(fosc, np.array([1.0, 3.0, 5.0, 9.0]), np.array([True, False, True, True]), bins=2)
    assert found.count.tolist() == [2, 1]
    assert found.accuracy.tolist() == [0.5, 1.0]
    assert found.loss.tolist() == [2.0, 5.0]
    empty = fosc_bins(fosc, fosc, fosc > 0, bins=1, low=0.1, high=0.2)
    assert np.isnan(empty.accuracy).all()
    assert len(found.plot()) == 2
    with pytest.raises(ConfigError, match="one shape"):
        fosc_bins(fosc, fosc[:2], fosc > 0)
    with pytest.raises(ConfigError, match="bins >= 1"):
        fosc_bins(fosc, fosc, fosc > 0, low=1.0, high=0.0)


def test_densities():
    rng = np.random.default_rng(0)
    samples = [np.abs(rng.normal(0, scale, 400)) for scale in (0.1, 0.3)]
    found = fosc_distribution(samples, ["1", "2"])
    assert found.density.shape == (2, 200)
    # A density on x >= 0, mirrored at 0: its integral is 1, and a half-normal one is largest at 0.
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid, axis=1), 1, atol=0.02)
    assert found.density[0].argmax() < 20
    assert found.density[0, 0] == pytest.approx(2 / (0.1 * np.sqrt(2 * np.pi)), rel=0.2)
    assert found.plot().get_legend()
    with pytest.raises(ConfigError, match="samples of one length"):
        fosc_distribution([samples[0], samples[1][:3]], ["1", "2"])
