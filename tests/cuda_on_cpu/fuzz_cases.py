"""Random calls of every op: shapes, layouts, addresses, masks, values that are not finite.

A case draws its arguments from a random.Random and asserts that the emulated CUDA kernel gives what the reference and
the native CPU kernel give. Its name and the seed of the Random reproduce it.
"""

import math
import random
from collections.abc import Callable

import torch
from cuda_on_cpu.emulator import Emulator
from torch import Tensor

from pyengm import ops
from pyengm.ops._memory_format import computation_dtype

STORAGE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EDGES = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 127, 511, 512, 513, 1023, 2047, 2048, 2049, 4095, 4096, 4097]
EDGES += [8191, 8192, 8193, 16383, 16384, 16385, 24577, 32768, 32769]
BROKEN = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, 1e-30, 6e4, 1e-7]


class Backends:
    """Runs an op as emulated CUDA kernel, as reference and as native CPU kernel, each on copies of its arguments."""

    def __init__(self, emulator: Emulator, r: random.Random):
        self.emulator = emulator
        schedule = {"resident": r.choice([0, 1, 2, 5, 16]), "processors": r.choice([1, 2, 4, 9])}
        self.schedule = schedule | {"seed": r.getrandbits(60), "largest_grid": r.choice([0, 1, 3])}

    def emulated(self, run: Callable, *inputs: Tensor):
        with self.emulator.replaces_cpu_kernels(**self.schedule):
            return run(*map(same_place, inputs), None)

    def all(self, run: Callable, *inputs: Tensor) -> tuple:
        """run(*inputs, backend) by the three in that order."""
        others = (run(*map(same_place, inputs), backend) for backend in ("reference", "cpu"))
        return self.emulated(run, *inputs), *others


def same_place(t: Tensor) -> Tensor:
    """A copy that is as aligned as t."""
    memory = t.new_empty(t.untyped_storage().nbytes() // t.itemsize)
    return memory.as_strided(t.shape, t.stride(), t.storage_offset()).copy_(t)


def shifted(t: Tensor, by: int) -> Tensor:
    """A copy of t, which is dense, at an address of `by` elements after an aligned one."""
    return t.new_empty(t.numel() + by).as_strided(t.shape, t.stride(), by).copy_(t)


def placed(r: random.Random, t: Tensor) -> Tensor:
    return t if r.random() < 0.3 else shifted(t, r.randint(0, 16 // t.itemsize + 1))


def length(r: random.Random, most: int) -> int:
    kind = r.random()
    if kind < 0.45:
        return min(r.choice(EDGES), most)
    return r.randint(1, 80) if kind < 0.8 else r.randint(1, most)


def broken(r: random.Random, t: Tensor, chance: float = 0.3) -> Tensor:
    """With that chance a few values of t become such as are not finite or round oddly."""
    if r.random() < chance and t.numel():
        flat = t.view(-1)
        for _ in range(r.randint(1, 3)):
            flat[r.randrange(len(flat))] = r.choice(BROKEN)
    return t


def attack(r: random.Random, chance: float = 0.0) -> list[Tensor]:
    """x_adv, grad, x; broken values in grad, and with `chance` in the others."""
    dtype, n = r.choice(STORAGE), r.choice([1, 1, 2, 3, 5, 9, 33])
    d = length(r, 40_000 if n < 4 else 2000)
    g = torch.Generator().manual_seed(r.getrandbits(40))
    x = torch.rand(n, d, generator=g).to(dtype)
    x_adv = (x.float() + 0.3 * torch.randn(n, d, generator=g)).to(dtype)
    exponent = r.randint(-3, 3) if r.random() < 0.9 else r.choice([-40, -18, 18, 30])
    grad = (torch.randn(n, d, generator=g) * 10.0**exponent).to(dtype)
    grad[torch.rand(n, d, generator=g) < 0.1] = 0.0
    tensors = [broken(r, x_adv, chance), broken(r, grad), broken(r, x, chance)]
    if r.random() < 0.2 and d % 6 == 0:
        layout = r.choice([torch.contiguous_format, torch.channels_last])
        tensors = [t.view(n, 3, d // 6, 2).contiguous(memory_format=layout) for t in tensors]
    if r.random() < 0.4:
        by = r.randint(0, 7)
        return [shifted(t, by) for t in tensors]
    return [placed(r, t) for t in tensors]


def per_example(r: random.Random, x: Tensor, low: float, high: float) -> tuple[float | Tensor, Tensor | None]:
    """A step size, or one per example, and perhaps a mask."""
    sizes = torch.empty(len(x), dtype=computation_dtype(x.dtype)).uniform_(low, high)
    return sizes if r.random() < 0.5 else high / 3, torch.rand(len(x)) < 0.6 if r.random() < 0.5 else None


def equal(got, *others) -> None:
    close(got, *others, rtol=0.0)


def close(got, *others, rtol: float, atol: float = 0.0) -> None:
    """Each of the others has the shape and type of `got`, and values within the tolerance; nan equals nan."""
    for other in others:
        if isinstance(got, tuple):
            for own, its in zip(got, other, strict=True):
                close(own, its, rtol=rtol, atol=atol)
        else:
            exact = got.dtype == torch.bool
            bounds = {"rtol": 0.0 if exact else rtol, "atol": 0.0 if exact else atol}
            torch.testing.assert_close(got, other, **bounds, equal_nan=True)


def rounding(t: Tensor) -> float:
    """A bound for two sums of at most 40,000 positive float64 terms, each rounded to the type of arithmetic on t."""
    return 2 * torch.finfo(computation_dtype(t.dtype)).eps + 40_000 * 2.0**-53


def order_of_terms(*terms: Tensor) -> float:
    """A bound on how far two orders of the additions move a sum of these float64 products: 2^-45 of their size."""
    return sum(t.double().flatten(1).abs().nan_to_num(0, 0, 0).sum(1).max().item() for t in terms) * 2.0**-45


def pgd_linf_step_(r, backends):
    x_adv, grad, x = attack(r, chance=0.3)
    step, mask = per_example(r, x, -0.1, 0.2)
    eps, (lo, hi) = r.choice([0.0, 0.1, math.inf]), r.choice([(0.0, 1.0), (-math.inf, math.inf), (0.2, 0.7)])
    options = {"lo": lo, "hi": hi, "mask": mask}
    run = lambda a, g, c, b: ops.pgd_linf_step_(a, g, c, step, eps, **options, backend=b)  # noqa: E731
    equal(*backends.all(run, x_adv, grad, x))


def pgd_l2_step_(r, backends):
    x_adv, grad, x = attack(r, chance=0.1)
    step, mask = per_example(r, x, -0.5, 2.0)
    eps = r.choice([0.0, 0.3, 1.0, math.inf])
    kind = r.random()
    if kind < 0.2:  # of the least float32, whose norm has no inverse
        grad.mul_(1e-40)
    elif kind < 0.4:  # a step that leaves a small part of each element
        x_adv.copy_(x)
        grad.copy_(x)
        step, eps = ops.row_norms(x, backend="reference") * (2.0 ** -r.randint(8, 22) - 1), math.inf
    run = lambda a, g, c, b: ops.pgd_l2_step_(a, g, c, step, eps, mask=mask, backend=b)  # noqa: E731
    got, *others = backends.all(run, x_adv, grad, x)
    close(got, *others, rtol=torch.finfo(x.dtype).eps, atol=2.0**-40)  # rounded once, of sums in another order
    if mask is not None:
        equal(got[~mask], x_adv[~mask])


def row_norms(r, backends):
    grad = attack(r)[1]
    if r.random() < 0.6:  # squares are beyond float32
        grad.mul_(r.choice([1e-32, 1e-20, 1e25, 1e33]))
    if r.random() < 0.3 and grad.dim() == 2 and grad.shape[1] > 1:
        grad = grad[:, ::2]
    close(*backends.all(lambda t, b: ops.row_norms(t, backend=b), grad), rtol=rounding(grad))


def fosc(r, backends):
    x_adv, grad, x = attack(r)
    norm, eps = r.choice(["linf", "l2"]), r.choice([0.0, 0.1])
    if r.random() < 0.3:  # at the maximum, where terms cancel, with differences that have more digits than x_adv
        norm, eps = "linf", 0.1
        x.mul_(2.0 ** -torch.randint(0, 12, x.shape))
        x_adv.copy_(x + eps * grad.sign())
    results = backends.all(lambda a, g, c, b: ops.fosc(a, g, c, eps, norm=norm, backend=b), x_adv, grad, x)
    bound = order_of_terms(grad, grad.double() * (x_adv.double() - x.double()))
    close(*results, rtol=rounding(x), atol=bound)


def fosc_step_(r, backends):
    x_adv, grad, x = attack(r)
    active = torch.rand(len(x)) < 0.7
    condition = backends.emulated(lambda a, g, c, b: ops.fosc(a, g, c, 0.1), x_adv, grad, x)
    threshold = r.choice([-math.inf, math.inf, 0.0, *condition[condition.isfinite()][:1].tolist()])

    def run(a, g, c, still, b):
        return ops.fosc_step_(a, g, c, still, 0.03, 0.1, threshold, backend=b), a, still

    sums, moved, still = backends.emulated(run, x_adv, grad, x, active)
    equal(sums, condition)  # bit by bit: the same sums, whether a step follows or not
    equal(still, active & ~(condition <= threshold))
    equal(moved, ops.pgd_linf_step_(same_place(x_adv), grad, x, 0.03, 0.1, mask=still))


def atas_step_(r, backends):
    x_adv, grad, x = attack(r)
    v = torch.rand(len(x), dtype=computation_dtype(x.dtype)) * 50
    numbers = {"eps": 0.1, "step_scale": 0.2, "c": 5.0, "min_step": 0.01, "max_step": 0.15}
    numbers |= {"beta": r.choice([0.0, 0.5, 1.0])}

    def run(a, g, c, own, b):
        return ops.atas_step_(a, g, c, own, **numbers, backend=b), own, a

    (sizes, moving, got), *others = backends.all(run, x_adv, grad, x, v)
    for other in others:
        close((sizes, moving), other[:2], rtol=rounding(x))
    average = numbers["beta"] * v.double() + (1 - numbers["beta"]) * grad.double().flatten(1).square().sum(1)
    moves = average.to(v.dtype).isfinite()
    equal(got, ops.pgd_linf_step_(same_place(x_adv), grad, x, sizes, 0.1, mask=moves))


def clip_weights(r, backends):
    norms = torch.rand(length(r, 5000), dtype=r.choice(STORAGE[:2])) * 5
    norms, alpha = placed(r, broken(r, norms)), r.choice([1e-3, 1.0, math.inf])
    equal(*backends.all(lambda t, b: ops.clip_weights(t, alpha, backend=b), norms))


def regression(r, backends):
    dtype, n = r.choice(STORAGE[:2]), r.choice([0, 1, 2, length(r, 3000)])
    x = torch.rand(n, dtype=dtype) + 0.1
    y = placed(r, broken(r, 3 * x + 0.5 + 0.1 * torch.randn(n, dtype=dtype)))
    x = placed(r, broken(r, x))
    line = torch.tensor([0.2, 1.5], dtype=torch.float64)
    given = r.random() < 0.2
    statistics = backends.all(lambda a, b, k: ops.regression_statistics(a, b, backend=k), x, y)
    close(*statistics, rtol=1e-12)  # positive terms but for broken ones: 3000 additions in float64
    results = backends.all(lambda a, b, k: ops.regression_weights(a, None if given else b, line, 1.3, backend=k), x, y)
    finite = bool(x.isfinite().all() and y.isfinite().all())
    if n < 2 or given or not finite or x.double().std() > 1e-3 * x.abs().max():  # else the fit is badly conditioned
        close(*results, rtol=1e-5)


def row_sums(r, backends):
    dtype, rows = r.choice(STORAGE[:2]), r.choice([1, 2, 3, 31, 257])
    columns = length(r, 20_000 if rows < 4 else 400)
    g, x = (placed(r, broken(r, torch.randn(rows, columns, dtype=dtype), 0.2)) for _ in "gx")
    got = backends.emulated(lambda a, b, k: ops.row_sums(a, b), g, x)
    truth = g.double().sum(1), (g.double() * x.double()).sum(1)
    bound = order_of_terms(g, g.double() * x.double())
    close(tuple(t.double() for t in got), truth, rtol=torch.finfo(dtype).eps, atol=bound)


def crop_flip(r, backends):
    c, h, w = r.choice([1, 2, 3, 4, 5, 7]), r.choice([1, 2, 5, 8, 31, 40]), r.choice([1, 3, 4, 7, 8, 13, 32, 300])
    total, n, pad, last = r.randint(1, 5), r.choice([1, 2, 7, 19]), r.choice([0, 1, 4]), r.random() < 0.5
    images = torch.randint(0, 256, (total, c, h, w), dtype=torch.uint8)
    positions = torch.randint(0, total, (n,)) if r.random() < 0.7 else None
    n = total if positions is None else n
    rows, cols, flip = torch.randint(-3, 2 * pad + 4, (n,)), torch.randint(-3, 2 * pad + 4, (n,)), torch.rand(n) < 0.5
    options = {"positions": positions, "channels_last": last}
    run = lambda i, a, b, k: ops.crop_flip(i, a, b, flip, pad, **options, backend=k)  # noqa: E731
    equal(*backends.all(run, placed(r, images), rows, cols))


def philox(r, backends):
    index = torch.randint(0, 2**32, (r.choice([1, 2, 3, 17]),))
    count = r.choice([length(r, 5000), 4 * length(r, 1300)])
    bits = {"seed": 63, "purpose": 16, "epoch": 32, "draw": 16}
    key = {name: r.getrandbits(width) for name, width in bits.items()}
    equal(*backends.all(lambda i, b: ops.philox_uniform(i, (count,), **key, backend=b), index))
    if count < 1200:  # log, sin and cos of two libraries differ in the last bit of a double, rarely in that of a float
        close(*backends.all(lambda i, b: ops.philox_normal(i, (count,), **key, backend=b), index), rtol=2.0**-23)


CASES = {f.__name__: f for f in (pgd_linf_step_, pgd_l2_step_, row_norms, fosc, fosc_step_, atas_step_, clip_weights,
                                 regression, row_sums, crop_flip, philox)}  # fmt: skip


def run_case(emulator: Emulator, name: str, seed: int) -> None:
    """Runs one case; an error says its name and its seed."""
    r = random.Random(f"{name} {seed}")
    torch.manual_seed(r.getrandbits(60))
    backends = Backends(emulator, r)
    try:
        CASES[name](r, backends)
    except Exception as error:
        raise AssertionError(f"fuzz case {name}, seed {seed}, schedule {backends.schedule}: {error}") from error
