"""Lanczos eigenvalues against a dense Hessian in float64."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pyengm.analysis import hessian_top
from pyengm.attacks import FGSM
from pyengm.errors import ConfigError


def dense_eigenvalues(net, x, y, bn):
    names, params = zip(*net.named_parameters(), strict=True)
    sizes = [p.numel() for p in params]
    buffers = {name: t.clone() for name, t in net.named_buffers()}

    def loss(flat):
        pieces = [t.view_as(p) for t, p in zip(flat.split(sizes), params, strict=True)]
        return cross_entropy(functional_call(net, {**buffers, **dict(zip(names, pieces, strict=True))}, x), y)

    net.train(bn == "train")
    hessian = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in params]))
    net.eval()
    return torch.linalg.eigvalsh(hessian).flip(0).numpy()


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_eigenvalues_are_those_of_the_dense_hessian(net, images, labels, bn, figure_text):
    attack = FGSM(0.05)
    x = attack(net, images, labels)
    expected = dense_eigenvalues(net, x, labels, bn)
    batch_size = 12 if bn == "train" else 5
    found = hessian_top(net, images, labels, attack=attack, k=4, tolerance=1e-9, bn=bn, batch_size=batch_size)
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues, expected[:4], rtol=1e-7)
    assert (np.diff(found.eigenvalues) <= 0).all()
    assert "rank" in figure_text(found.plot())


def test_residuals_bound_the_error(net, images, labels):
    expected = dense_eigenvalues(net, images, labels, "eval")
    found = hessian_top(net, images, labels, k=1, max_iterations=3, tolerance=1e-12)
    assert not found.converged
    assert found.iterations == 3
    assert np.abs(expected - found.eigenvalues[0]).min() <= found.residuals[0] * (1 + 1e-9)


def test_all_eigenvalues_of_few_weights():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2)).double()
    x, y = torch.rand(8, 1, 1, 2, dtype=torch.float64), torch.arange(8) % 2
    found = hessian_top(net, x, y, k=6)
    # The Hessian of a linear model with two classes has rank 3, which the first vector's space is.
    np.testing.assert_allclose(found.eigenvalues, dense_eigenvalues(net, x, y, "eval"), atol=1e-9)
    with pytest.raises(ConfigError, match="6 weights"):
        hessian_top(net, x, y, k=7)
