"""PGD with the expectation over transformation: torchattacks' results, and random models."""

import pytest
import torch
from helpers.attacked import batch, key_for, network
from torch import nn

from pyengm.attacks import EOTPGD, PGD
from pyengm.errors import ConfigError


class Noisy(nn.Module):
    """A model whose images get noise of the number of the call, which `calls` counts."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        return self.net(x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype))


def test_eot_pgd_is_that_of_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    net, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
    theirs = torchattacks.EOTPGD(Noisy(net), eps=0.1, alpha=0.02, steps=5, eot_iter=4, random_start=False)(x, y)
    ours = EOTPGD(0.1, 0.02, 5, samples=4, random_start=False)(Noisy(net), x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not ours.equal(PGD(0.1, 0.02, 5, random_start=False)(Noisy(net), x, y))


def test_a_model_without_noise():
    model, (x, y), key = network(dtype=torch.float64), batch(dtype=torch.float64), key_for(6)
    plain = PGD(0.1, 0.02, 5, restarts=2, early_stop=True)(model, x, y, key=key)
    mean = EOTPGD(0.1, 0.02, 5, samples=2, restarts=2, early_stop=True)(model, x, y, key=key)
    torch.testing.assert_close(mean, plain, rtol=0, atol=1e-12)


def test_passes_for_each_step():
    model = Noisy(network())
    EOTPGD(0.1, 0.02, 3, samples=5)(model, *batch())
    assert model.calls == 15
    with pytest.raises(ConfigError, match="samples is 0; expected at least 1"):
        EOTPGD(0.1, 0.02, 3, samples=0)
