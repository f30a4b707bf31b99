"""Planes of inputs and weights, point by point."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pyengm.analysis import input_plane, weight_plane
from pyengm.analysis.weight_space import gaussian_like
from pyengm.attacks import FGSM, PGD
from pyengm.errors import ConfigError
from pyengm.ops import Key

KEY = Key(2, 0, torch.arange(12))


def test_the_plane_of_inputs(net, images, labels, figure_text):
    attack = PGD(0.1, 0.03, 3)
    found = input_plane(net, images, labels, attack, resolution=5, extent=2.0, batch_size=5, seed=2)
    d1 = attack(net, images, labels, key=KEY) - images
    losses = {a: cross_entropy(net(images + a * d1), labels, reduction="none") for a in (-2, -1, 0, 1, 2)}
    for i, a in enumerate(found.grid):
        np.testing.assert_allclose(found.losses[:, i, 2], losses[round(a)].detach(), rtol=1e-9)
    np.testing.assert_allclose(found.norms, d1.flatten(1).norm(dim=1), rtol=1e-9)
    assert not np.allclose(found.losses[:, 2, 0], found.losses[:, 2, 2])
    np.testing.assert_allclose(found.mean([1, 4]).losses[0], (found.losses[1] + found.losses[4]) / 2)
    assert "attack" in figure_text(found.plot())
    assert "attack" in figure_text(found.mean([0]).plot(levels=found.levels()))


def test_the_second_direction_is_orthogonal_and_random(images):
    from pyengm.analysis.input_plane import orthogonal_direction

    d1 = torch.randn(12, 1, 6, 6, dtype=torch.float64)
    d1[3] = 0
    d2 = orthogonal_direction(d1, KEY)
    assert ((d1 * d2).flatten(1).sum(1).abs() < 1e-9).all()
    torch.testing.assert_close(d2.flatten(1).norm(dim=1), d1.flatten(1).norm(dim=1))
    few = orthogonal_direction(d1[4:6], Key(2, 0, torch.tensor([4, 5])))
    torch.testing.assert_close(few, d2[4:6])
    assert torch.linalg.matrix_rank(d2.flatten(1)) == 11


def shifted(net, moves):
    """A copy of the net with filter-normalised moves, filter by filter."""
    other = copy.deepcopy(net)
    for factor, direction in moves:
        for p, own, d in zip(other.parameters(), net.parameters(), direction, strict=True):
            if own.dim() < 2:
                continue
            for k in range(len(own)):
                p.data[k] += factor * d[k] * own[k].norm() / d[k].norm()
    return other


@pytest.mark.parametrize("dims", [1, 2])
def test_the_plane_of_weights(net, images, labels, dims, figure_text):
    attack, seeds = FGSM(0.1), [0, 7]
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = weight_plane(
        net, images, labels, attack=attack, dims=dims, seeds=seeds, resolution=5, extent=0.5, batch_size=5
    )
    directions = [gaussian_like(list(net.parameters()), seed) for seed in seeds]
    for i, a in enumerate(found.grid):
        for j in range(2 if dims == 1 else 5):
            moves = [(a, directions[j])] if dims == 1 else [(a, directions[0]), (found.grid[j], directions[1])]
            other = shifted(net, moves)
            x = attack(other, images, labels)
            expected = cross_entropy(other(x), labels).item()
            assert found.losses[(j, i) if dims == 1 else (i, j)] == pytest.approx(expected, rel=1e-9)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert "distance" in figure_text(found.plot())


def test_wrong_planes(net, images, labels):
    with pytest.raises(ConfigError, match="odd resolution"):
        input_plane(net, images, labels, FGSM(0.1), resolution=4)
    with pytest.raises(ConfigError, match="dims=2 with 2"):
        weight_plane(net, images, labels, attack=None, dims=2)
