"""FOSC along PGD against the vertices of the box; groups and densities against loops."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pyengm.analysis import fosc_bins, fosc_distribution, fosc_trajectory
from pyengm.attacks import PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.ops import Key

LINF = ThreatModel("linf", 0.2)


class Tiny(torch.nn.Module):
    """A classifier of three pixels, whose box has eight vertices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
        )
        self.double()

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def pixels():
    x = torch.rand(6, 1, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.0, 1.0  # corners of [0, 1], where the box cuts the ball
    return x, torch.arange(6) % 2


@pytest.mark.parametrize("box", [False, True])
def test_fosc_is_the_largest_gain_at_a_vertex(pixels, box):
    (x, y), model = pixels, Tiny()
    found = fosc_trajectory(model, x, y, LINF, steps=4, step_size=0.07, box=box, batch_size=2, seed=3)
    assert found.fosc.shape == found.loss.shape == found.correct.shape == (5, 6)
    for steps in range(1, 5):
        x_adv = PGD(0.2, 0.07, steps)(model, x, y, key=Key(3, 0, torch.arange(6))).requires_grad_()
        losses = cross_entropy(model(x_adv), y, reduction="none")
        (grad,) = torch.autograd.grad(losses.sum(), x_adv)
        low, high = (x - 0.2, x + 0.2) if not box else ((x - 0.2).clamp(min=0), (x + 0.2).clamp(max=1))
        for i in range(6):
            ends = list(zip(low[i].flatten(), high[i].flatten(), strict=True))
            vertices = torch.tensor(list(product(*ends)), dtype=torch.float64)
            gains = (vertices - x_adv[i].flatten()) @ grad[i].flatten()
            assert found.fosc[steps, i] == pytest.approx(gains.max().item(), rel=1e-9, abs=1e-12)
            assert found.loss[steps, i] == pytest.approx(losses[i].item(), rel=1e-9)


def test_fosc_in_l2_is_the_largest_gain_on_the_sphere(pixels):
    (x, y), model = pixels, Tiny()
    found = fosc_trajectory(model, x, y, ThreatModel("l2", 0.3), steps=1, random_start=False)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)
    np.testing.assert_allclose(found.fosc[0], 0.3 * grad.flatten(1).norm(dim=1), rtol=1e-9)
    with pytest.raises(ConfigError, match="L-infinity only"):
        fosc_trajectory(model, x, y, ThreatModel("l2", 0.3), box=True)


def test_training_mode_keeps_the_model(net, images, labels):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    train = fosc_trajectory(net, images, labels, LINF, steps=2, bn="train")
    assert not np.allclose(train.loss, fosc_trajectory(net, images, labels, LINF, steps=2).loss)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net.training


def test_groups_are_those_of_a_loop(net, images, labels, figure_text):
    along = fosc_trajectory(net, images, labels, LINF, steps=2)
    upper = float(np.sort(along.fosc[-1])[-3]) * 1.0001
    found = fosc_bins(net, images, labels, LINF, steps=2, bins=5, upper=upper)
    assert found.outside == 2
    assert found.count.sum() == 10
    for i, (low, high) in enumerate(zip(found.edges[:-1], found.edges[1:], strict=True)):
        rows = [j for j, value in enumerate(along.fosc[-1]) if low <= value < high]
        assert found.count[i] == len(rows)
        if rows:
            assert found.accuracy[i] == pytest.approx(np.mean([along.correct[-1, j] for j in rows]))
            assert found.loss[i] == pytest.approx(np.mean([along.loss[-1, j] for j in rows]))
        else:
            assert np.isnan(found.accuracy[i])
    assert "FOSC" in figure_text(found.plot())
    assert "FOSC" in figure_text(along.plot())


def test_density_is_a_sum_of_reflected_gaussians(two_nets, images, labels, figure_text):
    found = fosc_distribution(iter(two_nets), images, labels, LINF, steps=2)
    assert found.epochs.tolist() == [1, 5]
    assert found.density.shape == (2, 200)
    for row, (_, model) in enumerate(two_nets):
        samples = fosc_trajectory(model, images, labels, LINF, steps=2).fosc[-1]
        np.testing.assert_array_equal(found.samples[row], samples)
        iqr = np.subtract(*np.percentile(samples, [75, 25]))
        h = 0.9 * min(np.std(samples, ddof=1), iqr / 1.34) * 12**-0.2
        for k in (0, 50, 199):
            near = [np.exp(-(((found.grid[k] - s * sign) / h) ** 2) / 2) for s in samples for sign in (1, -1)]
            assert found.density[row, k] == pytest.approx(sum(near) / (12 * h * np.sqrt(2 * np.pi)), rel=1e-9)
    assert "epoch 5" in figure_text(found.plot())
