"""Memory-bound ops on a GPU against a copy and torch.compile: pytest bench/bench_ops_gpu.py.

Times are those of CUDA graphs, without launches from Python. Bytes are those that the formula must read and write; the
copy is a `copy_` that moves as many. extra_info, in medians with p20 and p80: "us", "GB/s", "share of copy bandwidth",
"ratio to ..." (theirs / ours; above 1 ours is faster).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from pyengm.data import CropFlip
from pyengm.ops import (
    Purpose,
    atas_step_,
    fosc,
    fosc_step_,
    pgd_l2_step_,
    pgd_linf_step_,
    philox_normal,
    philox_uniform,
    reference,
    row_norms,
    row_sums,
)

pytestmark = pytest.mark.gpu

STEP_SIZE, EPS = 2 / 255, 8 / 255
STEP_SCALE, C, MIN_STEP, MAX_STEP = 14 / 255, 100.0, 4 / 255, 14 / 255  # of ATAS
atas_step = partial(atas_step_, eps=EPS, step_scale=STEP_SCALE, c=C, min_step=MIN_STEP, max_step=MAX_STEP)
T = TypeVar("T")
QUANTILES = (0.2, 0.5, 0.8)


@dataclass
class Case:
    """An op, the bytes that its formula moves, and baselines that compute the same."""

    ours: Callable[[], object]
    moved: int
    baselines: dict[str, Callable[[], object]] = field(default_factory=dict)
    check: Callable[[], None] = lambda: None


def timed(run: Callable[[], object]) -> list[float]:
    """Microseconds: p20, median and p80."""
    from triton.testing import do_bench_cudagraph

    times = do_bench_cudagraph(run, rep=50, quantiles=list(QUANTILES))
    assert isinstance(times, list)
    return [1e3 * milliseconds for milliseconds in times]


def copy_time(moved: int) -> float:
    """Microseconds of a copy that reads half of `moved` bytes and writes the other half."""
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source))[1]


def report(benchmark, case: Case) -> None:
    case.check()
    copy = copy_time(case.moved)
    p20, ours, p80 = timed(case.ours)
    info = {"us": ours, "us p20": p20, "us p80": p80, "GB/s": case.moved / ours / 1e3}
    info["share of copy bandwidth"] = copy / ours
    for name, baseline in case.baselines.items():
        low, middle, high = timed(baseline)
        info |= {f"ratio to {name}": middle / ours, f"p20 to {name}": low / p80, f"p80 to {name}": high / p20}
    benchmark.extra_info.update(info)
    benchmark.pedantic(case.ours, rounds=20, warmup_rounds=2)
    print("\n" + ", ".join(f"{name} {value:.3g}" for name, value in info.items()))


def compiled(formula: Callable[..., T], *args: Tensor | float | bool | int) -> Callable[[], T]:
    fast = torch.compile(formula, dynamic=False)
    return lambda: fast(*args)


def batch(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(128, 3, size, size, device="cuda")
    start = (x + (torch.rand_like(x) * 2 - 1) * EPS).clamp_(0, 1)
    return start.to(dtype), torch.randn_like(x).to(dtype), x.to(dtype)


def per_example(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def linf(x_adv: Tensor, grad: Tensor, x: Tensor, sizes: Tensor | float) -> None:
    """The formula as one writes it for torch.compile, which fuses it and writes in place."""
    a, g, c = x_adv.float(), grad.float(), x.float()
    x_adv.copy_(torch.minimum(torch.maximum(a + sizes * g.sign(), c - EPS), c + EPS).clamp(0, 1))


def linf_case(x_adv, baseline_x_adv, grad, x) -> Case:
    return Case(
        lambda: pgd_linf_step_(x_adv, grad, x, STEP_SIZE, EPS),
        4 * x.nbytes,
        {"torch.compile": compiled(linf, baseline_x_adv, grad, x, STEP_SIZE)},
    )


def linf_each_case(x_adv, baseline_x_adv, grad, x) -> Case:
    steps, mask = torch.full((128,), STEP_SIZE, device="cuda"), torch.ones(128, dtype=torch.bool, device="cuda")

    def formula(x_adv, grad, x, steps, mask):
        linf(x_adv, grad, x, per_example(torch.where(mask, steps, 0.0)))

    return Case(
        lambda: pgd_linf_step_(x_adv, grad, x, steps, EPS, mask=mask),
        4 * x.nbytes,
        {"torch.compile": compiled(formula, baseline_x_adv, grad, x, steps, mask)},
    )


def l2_case(x_adv, baseline_x_adv, grad, x) -> Case:
    def formula(x_adv, grad, x):
        a, g, c = x_adv.float(), grad.float(), x.float()
        delta = a + per_example(0.1 / g.square().sum((1, 2, 3)).sqrt()) * g - c
        shrink = per_example((0.5 / delta.square().sum((1, 2, 3)).sqrt()).clamp(max=1))
        x_adv.copy_((c + delta * shrink).clamp(0, 1))

    return Case(
        lambda: pgd_l2_step_(x_adv, grad, x, 0.1, 0.5),
        4 * x.nbytes,
        {"torch.compile": compiled(formula, baseline_x_adv, grad, x)},
    )


def norms_case(x_adv, baseline_x_adv, grad, x) -> Case:
    return Case(
        lambda: row_norms(grad),
        grad.nbytes,
        {"torch.compile": compiled(lambda grad: grad.float().square().sum((1, 2, 3)).sqrt(), grad)},
    )


def condition(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    a, g, c = x_adv.float(), grad.float(), x.float()
    return EPS * g.abs().sum((1, 2, 3)) - ((a - c) * g).sum((1, 2, 3))


def fosc_case(x_adv, baseline_x_adv, grad, x) -> Case:
    return Case(lambda: fosc(x_adv, grad, x, EPS), 3 * x.nbytes, {"torch.compile": compiled(condition, x_adv, grad, x)})


def fosc_step_case(x_adv, baseline_x_adv, grad, x) -> Case:
    active = torch.ones(128, dtype=torch.bool, device="cuda")

    def formula(x_adv, grad, x, active):
        found = condition(x_adv, grad, x)
        active.logical_and_(found > -torch.inf)
        linf(x_adv, grad, x, per_example(STEP_SIZE * active))
        return found

    return Case(
        lambda: fosc_step_(x_adv, grad, x, active, STEP_SIZE, EPS, -torch.inf),
        4 * x.nbytes,
        {"torch.compile": compiled(formula, baseline_x_adv, grad, x, active.clone())},
    )


def atas_case(x_adv, baseline_x_adv, grad, x) -> Case:
    v = torch.full((128,), 100.0, device="cuda")

    def formula(x_adv, grad, x, v):
        v.lerp_(grad.float().square().sum((1, 2, 3)), 0.5)
        sizes = (STEP_SCALE / (1 + v.sqrt() / C)).clamp(MIN_STEP, MAX_STEP)
        linf(x_adv, grad, x, per_example(sizes))

    return Case(
        lambda: atas_step(x_adv, grad, x, v),
        4 * x.nbytes,
        {"torch.compile": compiled(formula, baseline_x_adv, grad, x, v.clone())},
    )


STEPS = {
    "pgd_linf_step_": linf_case,
    "pgd_linf_step_ each": linf_each_case,
    "pgd_l2_step_": l2_case,
    "row_norms": norms_case,
    "fosc": fosc_case,
    "fosc_step_": fosc_step_case,
    "atas_step_": atas_case,
}


def check(case: Case, x_adv: Tensor, baseline_x_adv: Tensor) -> None:
    """From the same start, one call of ours and of the baseline write and return the same, up to sums in float32."""
    (baseline,) = case.baselines.values()
    returned = case.ours(), baseline()
    one_rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[x_adv.dtype]
    torch.testing.assert_close(baseline_x_adv, x_adv, rtol=0, atol=one_rounding)
    if isinstance(returned[1], Tensor):
        torch.testing.assert_close(*returned, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", STEPS)
def test_steps(benchmark, name, size, dtype):
    x_adv, grad, x = batch(size, dtype)
    baseline_x_adv = x_adv.clone()
    case = STEPS[name](x_adv, baseline_x_adv, grad, x)
    case.check = lambda: check(case, x_adv, baseline_x_adv)
    report(benchmark, case)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("draw", [philox_uniform, philox_normal])
def test_philox(benchmark, draw, size):
    index, shape = torch.arange(128, device="cuda"), (3, size, size)
    out = torch.empty(128, *shape, device="cuda")

    def ours():
        return draw(index, shape, seed=1, purpose=Purpose.START)

    torchs = out.uniform_ if draw is philox_uniform else out.normal_
    report(benchmark, Case(ours, out.nbytes, {"torch's generator": torchs}))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [32, 224])
def test_crop_flip(benchmark, size, channels_last):
    images = torch.randint(0, 256, (2048, 3, size, size), dtype=torch.uint8, device="cuda")
    positions = torch.randperm(2048, device="cuda")[:128]
    crop = CropFlip.draw(positions, images.shape[1:], size // 8, seed=0, epoch=0)
    window = (positions, crop.rows, crop.cols, crop.flip, crop.padding, channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def ours():
        return crop.to_float(images, positions, memory_format=memory_format)

    def check():
        assert torch.equal(ours(), reference.crop_flip(images, *window))

    baseline = compiled(reference.crop_flip, images, *window)
    moved = 5 * 128 * images[0].numel()  # a byte read, four written
    report(benchmark, Case(ours, moved, {"torch.compile": baseline}, check))


@pytest.mark.parametrize("columns", [16, 64, 256, 1024])
def test_row_sums(benchmark, columns):
    g, x = (torch.randn(128 * 65536 // columns, columns, device="cuda") for _ in "gx")

    def formula(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return g.sum(1), (g * x).sum(1)

    baseline = compiled(formula, g, x)

    def check():
        for got, expected in zip(row_sums(g, x), baseline(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)

    report(benchmark, Case(lambda: row_sums(g, x), 2 * g.nbytes, {"torch.compile": baseline}, check))
