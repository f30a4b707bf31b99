"""The ops of attacks against eager PyTorch and torch.compile in float32: pytest bench/bench_attack_ops.py."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.linalg import vector_norm

from pyengm.ops import atas_step_, fosc, fosc_step_, pgd_l2_step_, row_norms

STEP_SIZE, EPS = 2 / 255, 8 / 255
STEP_SCALE, C, MIN_STEP, MAX_STEP = 14 / 255, 100.0, 4 / 255, 14 / 255  # of ATAS
atas_step = partial(atas_step_, eps=EPS, step_scale=STEP_SCALE, c=C, min_step=MIN_STEP, max_step=MAX_STEP)

every_size = pytest.mark.parametrize("size", [32, 224])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def batch(size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(128, 3, size, size, device=device)
    start = (x + (torch.rand_like(x) * 2 - 1) * EPS).clamp_(0, 1)
    return start, torch.randn_like(x), x


def per_example(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def rounds(size: int) -> int:
    return 200 if size == 32 else 20


def check_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # the baselines sum in float32


def eager_linf(x_adv: Tensor, grad: Tensor, x: Tensor, sizes: Tensor, scratch: Tensor) -> None:
    x_adv.addcmul_(grad.sign(), per_example(sizes))
    torch.sub(x_adv, x, out=scratch).clamp_(-EPS, EPS)
    torch.add(x, scratch, out=x_adv).clamp_(0, 1)


def functional_linf(x_adv: Tensor, grad: Tensor, x: Tensor, sizes: Tensor) -> Tensor:
    v = x_adv + per_example(sizes) * grad.sign()
    return torch.minimum(torch.maximum(v, x - EPS), x + EPS).clamp(0, 1)


@every_device
@every_size
def test_row_norms(compare, size, device):
    _, grad, _ = batch(size, device)
    float32, float64 = (lambda d=dtype: vector_norm(grad.flatten(1), dim=1, dtype=d) for dtype in (None, torch.float64))
    check_close(row_norms(grad), float32())
    check_close(row_norms(grad), float64().float())
    compare(
        lambda: row_norms(grad), {"eager, sums in float32": float32, "eager, sums in float64": float64}, rounds(size)
    )


@every_device
@every_size
def test_pgd_l2_step(compare, size, device):
    start, grad, x = batch(size, device)
    step, eps, scratch = 0.1, 0.5, torch.empty_like(x)

    def fused(x_adv):
        return pgd_l2_step_(x_adv, grad, x, step, eps)

    def in_place(x_adv):  # one scratch buffer
        x_adv.addcmul_(grad, per_example(step / vector_norm(grad, dim=(1, 2, 3))))
        torch.sub(x_adv, x, out=scratch)
        scratch.mul_(per_example((eps / vector_norm(scratch, dim=(1, 2, 3))).clamp_(max=1)))
        return torch.add(x, scratch, out=x_adv).clamp_(0, 1)

    def functional(x_adv, grad, x):
        delta = x_adv + per_example(step / grad.square().sum((1, 2, 3)).sqrt()) * grad - x
        return (x + delta * per_example((eps / delta.square().sum((1, 2, 3)).sqrt()).clamp(max=1))).clamp(0, 1)

    compiled = torch.compile(functional, dynamic=False)
    expected = fused(start.clone())
    check_close(in_place(start.clone()), expected)
    check_close(compiled(start, grad, x), expected)
    buffers = [start.clone() for _ in range(2)]
    compare(
        lambda: fused(buffers[0]),
        {"in-place eager": lambda: in_place(buffers[1]), "torch.compile": lambda: compiled(buffers[0], grad, x)},
        rounds(size),
    )


@every_device
@every_size
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fosc(compare, size, device, norm):
    x_adv, grad, x = batch(size, device)
    scratch, order = torch.empty_like(x), 1 if norm == "linf" else 2

    def eager():
        torch.sub(x_adv, x, out=scratch).mul_(grad)
        return EPS * vector_norm(grad, order, dim=(1, 2, 3)) - scratch.sum((1, 2, 3))

    def matrix_product():
        torch.sub(x_adv, x, out=scratch)
        reached = torch.bmm(scratch.flatten(1)[:, None], grad.flatten(1)[:, :, None])
        return EPS * vector_norm(grad, order, dim=(1, 2, 3)) - reached.flatten()

    def functional(x_adv, grad, x):
        dual = grad.abs().sum((1, 2, 3)) if norm == "linf" else grad.square().sum((1, 2, 3)).sqrt()
        return EPS * dual - ((x_adv - x) * grad).sum((1, 2, 3))

    compiled = torch.compile(functional, dynamic=False)
    baselines = {
        "eager, one buffer": eager,
        "eager, bmm": matrix_product,
        "torch.compile": lambda: compiled(x_adv, grad, x),
    }
    expected = fosc(x_adv, grad, x, EPS, norm=norm)
    for baseline in baselines.values():
        torch.testing.assert_close(baseline(), expected, rtol=1e-4, atol=1e-2)
    compare(lambda: fosc(x_adv, grad, x, EPS, norm=norm), baselines, rounds(size))


@every_device
@every_size
def test_fosc_step(compare, size, device):
    start, grad, x = batch(size, device)
    threshold = fosc(start, grad, x, EPS).median().item()
    scratch = torch.empty_like(x)
    some = torch.ones(128, dtype=torch.bool, device=device)

    def fused(x_adv, active, threshold):
        return fosc_step_(x_adv, grad, x, active, STEP_SIZE, EPS, threshold)

    def in_place(x_adv, active, threshold):  # one scratch buffer and the sign
        torch.sub(x_adv, x, out=scratch).mul_(grad)
        condition = EPS * vector_norm(grad, 1, dim=(1, 2, 3)) - scratch.sum((1, 2, 3))
        active.logical_and_(condition > threshold)
        eager_linf(x_adv, grad, x, STEP_SIZE * active, scratch)
        return condition

    def functional(x_adv, grad, x, active, threshold):
        condition = EPS * grad.abs().sum((1, 2, 3)) - ((x_adv - x) * grad).sum((1, 2, 3))
        active = active & (condition > threshold)
        return functional_linf(x_adv, grad, x, STEP_SIZE * active), active, condition

    compiled = torch.compile(functional, dynamic=False)
    states = [(start.clone(), some.clone()) for _ in range(2)]
    fused(*states[0], threshold)
    in_place(*states[1], threshold)
    stepped, still, _ = compiled(start, grad, x, some, torch.tensor(threshold, device=device))
    same = (states[0][1] == states[1][1]) & (states[0][1] == still)
    assert same.sum() >= 120  # sums in float32 may differ for examples at the threshold
    for other in (states[1][0], stepped):
        check_close(other[same], states[0][0][same])
    never_below = torch.tensor(-torch.inf, device=device)
    compare(
        lambda: fused(states[0][0], some, -torch.inf),
        {
            "in-place eager": lambda: in_place(states[1][0], some, -torch.inf),
            "torch.compile": lambda: compiled(states[0][0], grad, x, some, never_below),
        },
        rounds(size),
    )


@every_device
@every_size
def test_atas_step(compare, size, device):
    start, grad, x = batch(size, device)
    v, scratch, beta = torch.full((128,), 100.0, device=device), torch.empty_like(x), 0.5

    def fused(x_adv, v):
        return atas_step(x_adv, grad, x, v)

    def sizes_of(v):
        return (STEP_SCALE / (1 + v.sqrt() / C)).clamp(MIN_STEP, MAX_STEP)

    def in_place(x_adv, v):  # one scratch buffer and the sign
        v.lerp_(vector_norm(grad, dim=(1, 2, 3)).square_(), 1 - beta)
        eager_linf(x_adv, grad, x, sizes_of(v), scratch)

    def functional(x_adv, grad, x, v):
        v = beta * v + (1 - beta) * grad.square().sum((1, 2, 3))
        return functional_linf(x_adv, grad, x, sizes_of(v)), v

    compiled = torch.compile(functional, dynamic=False)
    states = [(start.clone(), v.clone()) for _ in range(2)]
    fused(*states[0])
    in_place(*states[1])
    for other in (states[1], compiled(start, grad, x, v)):
        for got, expected in zip(other, states[0], strict=True):
            check_close(got, expected)
    compare(
        lambda: fused(*states[0]),
        {"in-place eager": lambda: in_place(*states[1]), "torch.compile": lambda: compiled(states[0][0], grad, x, v)},
        rounds(size),
    )
