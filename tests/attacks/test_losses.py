"""Losses of attacks: their formulas, per example."""

import math

import pytest
import torch

from pyengm.attacks.losses import LOSSES, carlini_wagner, cross_entropy, margin


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_are_their_formulas(k, dtype):
    torch.manual_seed(0)
    logits, y = torch.randn(20, k, dtype=dtype), torch.randint(0, k, (20,))
    gap = []
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        gap.append(max(v for j, v in enumerate(z) if j != label) - z[label])
    gap = torch.tensor(gap, dtype=torch.float64)
    entropy = [-math.log(math.exp(z[c]) / sum(map(math.exp, z))) for z, c in zip(logits.tolist(), y, strict=True)]
    expected = {"margin": gap, "cw": gap.clamp(max=0), "ce": torch.tensor(entropy, dtype=torch.float64)}
    expected["targeted"] = -expected["ce"]
    wide = torch.promote_types(dtype, torch.float32)
    target = torch.randn(20, k, dtype=wide).log_softmax(1)
    divergence = target.exp().double() * (target.double() - logits.double().log_softmax(1))
    expected["kl"] = divergence.sum(1)
    assert LOSSES.keys() == expected.keys()
    for name, loss in LOSSES.items():
        losses = loss(logits, target if name == "kl" else y)
        assert losses.shape == (20,)
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(losses.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_the_losses_of_examples_are_independent():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3])
    for loss in (cross_entropy, margin, carlini_wagner):
        for i in range(4):
            (g,) = torch.autograd.grad(loss(logits, y)[i], logits)
            assert not g[torch.arange(4) != i].any()
