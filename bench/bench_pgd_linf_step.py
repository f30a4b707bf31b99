"""The fused PGD step against eager PyTorch and torch.compile: pytest bench/bench_pgd_linf_step.py."""

import pytest
import torch

from pyengm.ops import pgd_linf_step_

STEP_SIZE, EPS = 2 / 255, 8 / 255
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [32, 224])
def test_pgd_linf_step(compare, size, device):
    x = torch.rand(128, 3, size, size, device=device)
    grad = torch.randn_like(x)
    start = (x + (torch.rand_like(x) * 2 - 1) * EPS).clamp_(0, 1)
    scratch, lower, upper = torch.empty_like(x), (x - EPS).clamp_(min=0), (x + EPS).clamp_(max=1)

    def fused(x_adv):
        return pgd_linf_step_(x_adv, grad, x, STEP_SIZE, EPS)

    def naive(x_adv):
        x_adv = x_adv + STEP_SIZE * grad.sign()
        return torch.clamp(x + torch.clamp(x_adv - x, -EPS, EPS), 0, 1)

    def in_place(x_adv):  # one scratch buffer; overwrites the gradient
        x_adv.add_(grad.sign_(), alpha=STEP_SIZE)
        torch.sub(x_adv, x, out=scratch).clamp_(-EPS, EPS)
        return torch.add(x, scratch, out=x_adv).clamp_(0, 1)

    def in_place_bounds(x_adv):  # two more buffers of the size of the batch, filled once per attack
        return x_adv.add_(grad.sign_(), alpha=STEP_SIZE).clamp_(lower, upper)

    def functional(x_adv, grad, x):
        return torch.minimum(torch.maximum(x_adv + STEP_SIZE * grad.sign(), x - EPS), x + EPS).clamp(0, 1)

    compiled = torch.compile(functional)
    expected = fused(start.clone())
    for other in (naive, in_place, in_place_bounds, lambda x_adv: compiled(x_adv, grad, x)):
        torch.testing.assert_close(other(start.clone()), expected, rtol=0, atol=2**-23)  # eager rounds x_adv - x

    buffers = [start.clone() for _ in range(4)]
    compare(
        lambda: fused(buffers[0]),
        {
            "naive eager": lambda: naive(buffers[1]),
            "in-place eager": lambda: in_place(buffers[2]),
            "in-place eager, bounds kept": lambda: in_place_bounds(buffers[3]),
            "torch.compile": lambda: compiled(buffers[0], grad, x),
        },
        rounds=300 if size == 32 else 40,
    )
