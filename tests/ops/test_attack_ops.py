"""The ops of attack steps, on every backend at hand, against their references and their formulas."""

import math
from itertools import pairwise, product

import pytest
import torch
from helpers.attack_tensors import attack_tensors
from torch import Tensor

from pyengm.ops import (
    Purpose,
    atas_step_,
    available_backends,
    clip_weights,
    crop_flip,
    fosc,
    fosc_step_,
    pgd_l2_step_,
    pgd_linf_step_,
    philox_normal,
    philox_uniform,
    regression_weights,
    row_norms,
    row_sums,
)
from pyengm.ops._memory_format import computation_dtype

SHAPES = [(1, 1), (5, 3, 7, 11), (3, 123), (7,), (2, 3, 224, 224), (129, 1, 5, 5), (6, 3, 4, 4), (3, 16385)]
DTYPES = [torch.float32, torch.float64]
STORAGE = [*DTYPES, torch.bfloat16, torch.float16]
ATAS = {"eps": 0.1, "step_scale": 0.2, "c": 5.0, "min_step": 0.01, "max_step": 0.15}


def elements(t: Tensor) -> int:
    return math.prod(t.shape[1:])


def close(got: Tensor, expected: Tensor, d: int, scale: float = 1.0) -> None:
    """Within one rounding to the dtype, after sums of d terms of size `scale` in float64, in any order."""
    rtol = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, expected, rtol=rtol, atol=scale * (d + 8) * 2.0**-52, equal_nan=True)


def rows(*tensors: Tensor) -> list[tuple[list[float], ...]]:
    """Per example the elements of each tensor as lists of Python floats."""
    return list(zip(*(t.double().flatten(1).tolist() for t in tensors), strict=True))


# Each op by name as run(x_adv, grad, x, backend) -> all that it returns or changes; it changes nothing of its inputs.
def _norms(x_adv, grad, x, backend=None):
    return (row_norms(grad, backend=backend),)


def _l2(x_adv, grad, x, backend=None):
    return (pgd_l2_step_(x_adv.clone(), grad, x, 0.5, 1.0, backend=backend),)


def _fosc(x_adv, grad, x, backend=None):
    return fosc(x_adv, grad, x, 0.1, backend=backend), fosc(x_adv, grad, x, 0.1, norm="l2", backend=backend)


def _fosc_step(x_adv, grad, x, backend=None):
    x_adv, active = x_adv.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    return fosc_step_(x_adv, grad, x, active, 0.03, 0.1, 0.0, backend=backend), x_adv, active


def _atas(x_adv, grad, x, backend=None):
    x_adv, v = x_adv.clone(), x.new_ones(len(x), dtype=computation_dtype(x.dtype))
    return atas_step_(x_adv, grad, x, v, **ATAS, backend=backend), x_adv, v


RUNS = {"row_norms": _norms, "pgd_l2_step_": _l2, "fosc": _fosc, "fosc_step_": _fosc_step, "atas_step_": _atas}
all_ops = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


class TestAll:
    @all_ops
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_against_reference(self, backend, run, shape, dtype):
        inputs = attack_tensors(shape, dtype, backend)
        d = elements(inputs[0])
        for got, expected in zip(run(*inputs, backend), run(*inputs, "reference"), strict=True):
            assert got.dtype in (
                torch.bool,
                computation_dtype(got.dtype),
                *([dtype] if got.dim() == inputs[0].dim() else []),
            )
            if got.dtype == torch.bool:
                assert torch.equal(got, expected)
            else:
                close(got, expected, d, scale=2.0 * d**0.5 if got.dim() == 1 else 1.0)

    @all_ops
    @pytest.mark.parametrize("shape", [(9, 3, 5, 7), (9, 3, 32, 32)])
    def test_an_example_does_not_depend_on_its_batch(self, backend, run, shape):
        inputs = attack_tensors(shape, device=backend)
        whole = run(*inputs)
        for pieces in ((1,) * 9, (4, 5), (2, 6, 1)):
            parts = zip(*(run(*piece) for piece in zip(*(t.split(pieces) for t in inputs), strict=True)), strict=True)
            for expected, part in zip(whole, parts, strict=True):
                assert torch.equal(torch.cat(part), expected)

    @all_ops
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", [(64, 1028), (5, 40_003)])  # 4 chunks of the CPU kernels, 5 pieces of CUDA's
    def test_any_alignment_and_any_number_of_threads_give_the_same_bits(self, backend, run, shape, dtype):
        inputs = attack_tensors(shape, dtype, backend)
        expected = run(*inputs)

        def shift(t: Tensor, by: int) -> Tensor:
            return torch.empty(t.numel() + by, dtype=dtype, device=backend)[by:].view_as(t).copy_(t)

        together, apart = [shift(t, 1) for t in inputs], [shift(t, by) for by, t in enumerate(inputs)]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            more = run(*inputs)
        finally:
            torch.set_num_threads(threads)
        for again in (run(*together), run(*apart), more):
            assert all(map(torch.equal, again, expected))

    @all_ops
    def test_channels_last_and_other_strides(self, backend, run):
        inputs = attack_tensors((3, 4, 6, 5), device=backend)
        expected = run(*inputs, "reference")
        channels_last = [t.to(memory_format=torch.channels_last, copy=True) for t in inputs]
        strided = [inputs[0], *(t.transpose(2, 3).contiguous().transpose(2, 3) for t in inputs[1:])]
        for changed in (channels_last, [channels_last[0], *inputs[1:]], strided):
            for got, truth in zip(run(*changed), expected, strict=True):
                close(got.double(), truth.double(), 2**30)  # 2**-22: one rounding to float32

    @all_ops
    @pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0,), (3, 0)])
    def test_no_elements(self, backend, run, shape):
        x = torch.empty(shape, device=backend)
        for kind in ("reference", backend):
            for result in run(x, x.clone(), x.clone(), kind):
                assert result.shape in (shape, shape[:1])
                assert result.isfinite().all()

    @all_ops
    def test_inference_mode(self, backend, run):
        with torch.inference_mode():
            inputs = attack_tensors((2, 3), device=backend)
            for got, expected in zip(run(*inputs), run(*inputs, "reference"), strict=True):
                close(got.double(), expected.double(), 2**30)

    @all_ops
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_requires_grad(self, run, index):
        inputs = list(attack_tensors((2, 3)))
        inputs[index].requires_grad_()
        if run is _norms and index != 1:
            return
        with pytest.raises(RuntimeError, match="no derivative"):
            run(*inputs)
        with torch.no_grad():
            run(*inputs)

    @all_ops
    def test_unknown_backend(self, run):
        with pytest.raises(ValueError, match="expected None or one of"):
            run(*attack_tensors((2, 3)), "opencl")

    @pytest.mark.parametrize("name", ["pgd_l2_step_", "fosc_step_", "atas_step_"])
    def test_changes_bump_the_version(self, backend, name):
        x_adv, grad, x = attack_tensors((2, 3), device=backend)
        active, v = torch.ones(2, dtype=torch.bool, device=backend), torch.ones(2, device=backend)
        changed, step = {
            "pgd_l2_step_": ([x_adv], lambda: pgd_l2_step_(x_adv, grad, x, 0.1, 0.1)),
            "fosc_step_": ([x_adv, active], lambda: fosc_step_(x_adv, grad, x, active, 0.1, 0.1, 0.0)),
            "atas_step_": ([x_adv, v], lambda: atas_step_(x_adv, grad, x, v, **ATAS)),
        }[name]
        weight = torch.ones_like(x_adv, requires_grad=True)
        saving = x_adv * weight  # saves x_adv
        before = [t._version for t in changed]
        step()
        assert [t._version for t in changed] == [version + 1 for version in before]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saving.sum().backward()

    STEPS = (
        lambda a, g, x, **k: pgd_l2_step_(a, g, x, **{"step_size": 0.1, "eps": 0.1} | k),
        lambda a, g, x, **k: fosc(a, g, x, **{"eps": 0.1} | k),
        lambda a, g, x, **k: fosc_step_(
            a, g, x, **{"active": torch.ones(2) > 0, "step_size": 0.1, "eps": 0.1, "threshold": 0.0} | k
        ),
        lambda a, g, x, **k: atas_step_(a, g, x, **{"v": torch.ones(2)} | ATAS | k),
    )

    @pytest.mark.parametrize("op", STEPS, ids=list(RUNS)[1:])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"g": torch.zeros(2, 4)}, r"grad of shape \(2, 3\)"),
            ({"g": torch.zeros(2, 3).double()}, "in torch.float32"),
            ({"x": torch.zeros(2, 3, device="meta")}, "on cpu"),
            ({"a": torch.zeros(2, 3).int()}, "float32, float64, bfloat16 or float16"),
            ({"a": torch.zeros(2, 3).half()}, "grad of shape .* in torch.float16"),
            ({"a": torch.tensor(1.0)}, r"of shape \(n, ...\)"),
            ({"eps": -1.0}, "eps >= 0"),
            ({"eps": math.nan}, "eps >= 0"),
        ],
    )
    def test_bad_arguments(self, op, change, message):
        inputs = dict(zip("agx", attack_tensors((2, 3)), strict=True))
        with pytest.raises(ValueError, match=message):
            op(**inputs | change)

    L2, FOSC, FOSC_STEP, ATAS_STEP = STEPS

    @pytest.mark.parametrize(
        ("op", "change", "message"),
        [
            *((op, {"a": torch.zeros(3, 2).t()}, "contiguous or channels_last") for op in (L2, FOSC_STEP, ATAS_STEP)),
            *((op, {"lo": 2.0}, "lo <= hi") for op in (L2, FOSC_STEP, ATAS_STEP)),
            (L2, {"step_size": torch.zeros(3)}, r"step_size of shape \(2,\)"),
            (L2, {"step_size": math.inf}, "finite step_size"),
            (L2, {"mask": torch.ones(2)}, "mask of shape"),
            (FOSC, {"norm": "l1"}, "linf, l2"),
            (FOSC, {"eps": math.inf}, "finite eps"),
            (FOSC_STEP, {"step_size": math.nan}, "finite step_size"),
            (FOSC_STEP, {"threshold": math.nan}, "threshold"),
            (FOSC_STEP, {"active": torch.ones(2)}, "active of shape"),
            (FOSC_STEP, {"active": (torch.ones(4) > 0)[::2]}, "contiguous"),
            (ATAS_STEP, {"v": torch.ones(2).double()}, "v of shape"),
            (ATAS_STEP, {"v": torch.ones(4)[::2]}, "contiguous"),
            (ATAS_STEP, {"c": 0.0}, "c > 0"),
            (ATAS_STEP, {"step_scale": math.inf}, "step_scale > 0"),
            (ATAS_STEP, {"min_step": 0.2}, "min_step <= max_step"),
            (ATAS_STEP, {"beta": 1.1}, "beta between"),
        ],
    )
    def test_bad_values(self, op, change, message):
        inputs = dict(zip("agx", attack_tensors((2, 3)), strict=True))
        with pytest.raises(ValueError, match=message):
            op(**inputs | change)

    @pytest.mark.parametrize("op", [L2, FOSC_STEP, ATAS_STEP])
    def test_overlap(self, op):
        memory = torch.rand(3, 4)
        for inputs in ((memory[:2], memory[1:], torch.rand(2, 4)), (memory[:2], torch.rand(2, 4), memory[1:])):
            with pytest.raises(ValueError, match="separate memory"):
                op(*inputs)

    def test_overlap_of_values_per_example(self):
        memory = torch.rand(2, 4)
        with pytest.raises(ValueError, match="x_adv and v in separate memory"):
            atas_step_(memory, torch.rand(2, 4), torch.rand(2, 4), memory[0, :2], **ATAS)
        with pytest.raises(ValueError, match="v and grad in separate memory"):
            atas_step_(torch.rand(2, 4), memory, torch.rand(2, 4), memory[0, :2], **ATAS)
        with pytest.raises(ValueError, match="active and x in separate memory"):
            fosc_step_(torch.rand(2, 4), torch.rand(2, 4), memory, memory.view(torch.bool)[0, :2], 0.1, 0.1, 0.0)


class TestRowNorms:
    def test_formula(self, backend):
        t = attack_tensors((5, 3, 7), torch.float64, backend)[1]
        for (row,), norm in zip(rows(t), row_norms(t).tolist(), strict=True):
            assert norm == pytest.approx(math.sqrt(math.fsum(v * v for v in row)), rel=2**-50)

    @pytest.mark.parametrize("size", [1e-23, 1e-40, 1e23, 3e38])
    def test_squares_beyond_float32(self, any_backend, device, size):
        t = torch.full((2, 9), size / 3, device=device)
        norm = 3 * t[0, 0].item()
        torch.testing.assert_close(row_norms(t, backend=any_backend).tolist(), [norm, norm], rtol=2**-23, atol=0)

    def test_elements_of_any_size_count(self, backend):
        """CUDA computes in float32 where the largest of a few elements is from 2^-50 to 2^60, in float64 elsewhere."""
        largest = [2.0**60, 2.0**60 * (1 + 2**-23), 2.0**-50, 2.0**-50 * (1 - 2**-24), 2.0**-140, 2.0**127, 1.0]
        t = torch.zeros(3 * len(largest), 16, device=backend)
        for k, value in enumerate(largest):
            t[3 * k, 5] = t[3 * k + 1, 2:9] = t[3 * k + 2] = value
            t[3 * k + 1, 3] = t[3 * k + 2, :8] = value * 2**-12  # squares that are the last digits of the sum
        expected = row_norms(t.double(), backend="reference").float()
        torch.testing.assert_close(row_norms(t), expected, rtol=2**-23, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(40, 16), (40, 123), (5, 3, 32, 32), (2, 40_003)])
    def test_the_error_is_that_of_one_rounding(self, backend, dtype, shape):
        t = attack_tensors(shape, dtype, backend)[1]
        for (row,), norm in zip(rows(t), row_norms(t).tolist(), strict=True):
            exact = math.sqrt(math.fsum(v * v for v in row))
            half_a_place = 2.0 ** (math.frexp(exact)[1] - 25)
            assert abs(norm - exact) <= half_a_place + 2.0**-34 * exact

    @pytest.mark.parametrize("d", [1, 7, 8, 31, 33, 3072])
    def test_nan_and_inf_are_kept(self, backend, d):
        t = torch.ones(4, d, device=backend)
        t[1, -1], t[2, 0], t[3] = math.nan, -math.inf, 0.0
        for kind in ("reference", backend):
            got = row_norms(t, backend=kind).tolist()
            assert got[0] == pytest.approx(math.sqrt(d))
            assert math.isnan(got[1])
            assert got[2:] == [math.inf, 0.0]


def l2_step(a, g, c, step, eps, lo, hi) -> list[float]:
    """One example in Python floats, by the formula in the docstring of pgd_l2_step_."""
    norm = math.sqrt(math.fsum(v * v for v in g))
    moves = 0 < norm < math.inf
    delta = [av + (step * gv / norm if moves else 0.0) - cv for av, gv, cv in zip(a, g, c, strict=True)]
    delta_norm = math.sqrt(math.fsum(v * v for v in delta))
    shrink = eps / delta_norm if delta_norm > eps else 1.0
    return [min(max(cv + shrink * v, lo), hi) for cv, v in zip(c, delta, strict=True)]


class TestPgdL2Step:
    @pytest.mark.parametrize("eps", [0.0, 0.7, 1e3, math.inf])
    @pytest.mark.parametrize("step", [0.0, 0.3, -0.3, 50.0, 1e12])
    def test_formula(self, backend, eps, step):
        x_adv, grad, x = attack_tensors((4, 3, 9), torch.float64, backend)
        got = pgd_l2_step_(x_adv.clone(), grad, x, step, eps, lo=0.2, hi=0.9)
        for (a, g, c), (result,) in zip(rows(x_adv, grad, x), rows(got), strict=True):
            assert result == pytest.approx(l2_step(a, g, c, step, eps, 0.2, 0.9), abs=2**-45)

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_per_example_step_and_mask(self, backend, shape, dtype):
        x_adv, grad, x = attack_tensors(shape, dtype, backend)
        n, d = shape[0], elements(x)
        steps = torch.linspace(0.0, 2.0, 2 * n, dtype=computation_dtype(x.dtype), device=backend)[::2]
        mask = (torch.arange(2 * n, device=backend) % 3 > 0)[::2]
        expected = pgd_l2_step_(x_adv.clone(), grad, x, steps, 1.0, mask=mask, backend="reference")
        got = pgd_l2_step_(x_adv.clone(), grad, x, steps, 1.0, mask=mask, backend=backend)
        close(got, expected, d)
        assert torch.equal(got[~mask], x_adv[~mask])
        one = pgd_l2_step_(x_adv[-1:].clone(), grad[-1:], x[-1:], steps[-1].item(), 1.0)
        assert torch.equal(one[0], got[-1] if mask[-1] else one[0])

    def test_the_result_is_in_the_ball_and_the_step_has_its_size(self, backend):
        x_adv, grad, x = attack_tensors((50, 3, 8, 8), device=backend)
        got = pgd_l2_step_(x_adv.clone(), grad, x, 0.3, 0.5, lo=-10, hi=10)
        assert row_norms(got - x).max() <= 0.5 * (1 + 2**-20)  # every element is rounded to float32
        got = pgd_l2_step_(x.clone(), grad, x, 0.3, 0.5, lo=-10, hi=10)
        torch.testing.assert_close(row_norms(got - x), x.new_full((50,), 0.3), rtol=2**-20, atol=0)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", ["zero", "nan", "inf"])
    def test_a_gradient_without_a_direction_moves_nothing(self, backend, kind, dtype):
        x_adv, grad, x = attack_tensors((3, 21), dtype, backend)
        grad = (
            torch.zeros_like(grad)
            if kind == "zero"
            else grad.index_fill(1, torch.tensor(4).to(grad.device), float(kind))
        )
        inside = x + 0.01 * (x_adv - x).clamp(-1, 1)
        for run in ("reference", backend):
            assert torch.equal(pgd_l2_step_(inside.clone(), grad, x, 0.3, 5.0, lo=-9, hi=9, backend=run), inside)
            projected = pgd_l2_step_(x_adv.clone(), grad, x, 0.3, 0.5, backend=run)
            close(projected, pgd_l2_step_(x_adv.clone(), torch.ones_like(x), x, 0.0, 0.5, backend=run), 21)

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_an_example_that_is_at_no_distance_becomes_nan(self, any_backend, device, value, dtype):
        x_adv, grad, x = attack_tensors((4, 21), dtype, device)
        x[0, 3] = x_adv[1, 20] = x[2, 5] = x_adv[2, 5] = value
        mask = torch.tensor([True, True, False, True], device=device)
        for eps in (0.0, 0.7, math.inf):
            got = pgd_l2_step_(x_adv.clone(), grad, x, 0.3, eps, mask=mask, backend=any_backend)
            assert got[:2].isnan().all()
            assert torch.equal(got[2].nan_to_num(), x_adv[2].nan_to_num())
            assert got[3].isfinite().all()

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("digits", [4, 9, 10, 11, 14, 20])
    def test_small_differences_of_large_terms(self, backend, dtype, digits):
        """The step takes all but 2^-digits of each element away."""
        x = attack_tensors((30, 45), dtype, backend)[2]
        steps = row_norms(x) * (2.0**-digits - 1.0)
        bounds = {"lo": -math.inf, "hi": math.inf}
        got = pgd_l2_step_(x.clone(), x, x, steps, math.inf, **bounds)
        expected = pgd_l2_step_(x.clone(), x, x, steps, math.inf, **bounds, backend="reference")
        size = row_norms(x).max().item()
        atol = size * (2.0**-48 if dtype == torch.float64 else 2.0**-31)
        torch.testing.assert_close(got, expected, rtol=torch.finfo(dtype).eps, atol=atol)

    @pytest.mark.parametrize("step", [1e12, 2.0**110, 2.0**126])
    def test_a_huge_step_along_a_tiny_gradient(self, backend, step):
        grad = torch.tensor([[2.0**-149, -(2.0**-149), 0.0, 2.0**-149]], device=backend)
        x = torch.full_like(grad, 0.5)
        bounds = {"lo": -math.inf, "hi": math.inf}
        for eps in (1.0, 2.0**109, math.inf):
            got = pgd_l2_step_(x.clone(), grad, x, step, eps, **bounds)
            expected = pgd_l2_step_(x.clone(), grad, x, step, eps, **bounds, backend="reference")
            torch.testing.assert_close(got, expected, rtol=2**-23, atol=0)

    @pytest.mark.parametrize("size", [1e-40, 1e-23, 1e30, 3e38])
    def test_tiny_and_huge_gradients_have_a_direction(self, backend, size):
        x = torch.full((2, 8), 0.5, device=backend)
        got = pgd_l2_step_(x.clone(), torch.full_like(x, size), x, 0.1, 1.0)
        torch.testing.assert_close(got, x + 0.1 / 8**0.5, rtol=2**-23, atol=0)


class TestFosc:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_formula(self, backend, norm):
        x_adv, grad, x = attack_tensors((4, 3, 9), torch.float64, backend)
        for (a, g, c), got in zip(rows(x_adv, grad, x), fosc(x_adv, grad, x, 0.3, norm=norm).tolist(), strict=True):
            dual = math.fsum(map(abs, g)) if norm == "linf" else math.sqrt(math.fsum(v * v for v in g))
            dot = math.fsum((av - cv) * gv for av, gv, cv in zip(a, g, c, strict=True))
            assert got == pytest.approx(0.3 * dual - dot, abs=2**-44)

    @pytest.mark.parametrize("d", [1, 3, 10])
    def test_the_largest_gain_over_the_vertices_of_the_ball(self, backend, d):
        x_adv, grad, x = attack_tensors((3, d), torch.float64)
        vertices = torch.tensor(list(product((-0.3, 0.3), repeat=d)), dtype=x.dtype)
        gains = ((x[:, None] + vertices - x_adv[:, None]) * grad[:, None]).sum(2)
        got = fosc(*(t.to(backend) for t in (x_adv, grad, x)), 0.3).cpu()
        torch.testing.assert_close(got, gains.max(1).values, rtol=0, atol=2**-48)

    def test_no_point_of_the_l2_ball_gains_more(self, backend):
        x_adv, grad, x = attack_tensors((3, 6), torch.float64, backend)
        directions = torch.randn(1000, 3, 6, dtype=x.dtype, device=backend)
        points = x + 0.3 * directions / directions.norm(dim=2, keepdim=True)
        gains = ((points - x_adv) * grad).sum(2)
        assert (gains <= fosc(x_adv, grad, x, 0.3, norm="l2") + 2**-48).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_at_least_zero_in_the_ball_and_zero_at_the_maximum(self, backend, dtype):
        x_adv, grad, x = attack_tensors((20, 3, 8, 8), dtype, backend)
        tolerance = 0.25 * torch.finfo(dtype).eps * 192  # x_adv is rounded: per element eps/4, times |grad|
        bound = {"linf": tolerance * grad.flatten(1).abs().max(1).values, "l2": tolerance * row_norms(grad)}
        unit = grad / row_norms(grad).view(-1, 1, 1, 1)
        delta = x_adv - x
        inside = {
            "linf": x + delta.clamp(-0.25, 0.25),
            "l2": x + 0.25 * delta / row_norms(delta).view(-1, 1, 1, 1),
        }
        best = {"linf": x + 0.25 * grad.sign(), "l2": x + 0.25 * unit}
        for norm in ("linf", "l2"):
            assert (fosc(inside[norm], grad, x, 0.25, norm=norm) >= -4 * bound[norm]).all()
            assert (fosc(best[norm], grad, x, 0.25, norm=norm).abs() <= 4 * bound[norm]).all()
            assert (fosc(x, grad, x, 0.25, norm=norm) > 0).all()

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("d", [16, 3072, 40_003])
    def test_the_error_where_terms_cancel(self, backend, dtype, d):
        grad = attack_tensors((3, d), dtype, backend)[1]
        x = torch.zeros_like(grad)
        x_adv = 0.125 * grad.sign()  # the maximum
        bound = 2.0**-33 * (0.125 * grad.double().abs().sum(1) + 0.125 * d**0.5 * grad.double().norm(dim=1))
        assert (fosc(x_adv, grad, x, 0.125).abs() <= bound).all()

    def test_nan_is_kept(self, backend):
        x_adv, grad, x = attack_tensors((3, 21), device=backend)
        grad[1, 20] = math.nan
        for kind in ("reference", backend):
            for norm in ("linf", "l2"):
                assert fosc(x_adv, grad, x, 0.1, norm=norm, backend=kind).isnan().tolist() == [False, True, False]


class TestFoscStep:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_is_fosc_then_a_masked_step(self, backend, shape, dtype):
        x_adv, grad, x = attack_tensors(shape, dtype, backend)
        active = torch.arange(shape[0], device=backend) % 4 > 0
        condition = fosc(x_adv, grad, x, 0.1)
        for threshold in (-math.inf, condition.median().item(), math.inf):
            moved, remaining = x_adv.clone(), active.clone()
            got = fosc_step_(moved, grad, x, remaining, 0.03, 0.1, threshold, lo=0.1, hi=0.8)
            assert torch.equal(got, condition)
            assert torch.equal(remaining, active & ~(condition <= threshold))
            assert torch.equal(moved, pgd_linf_step_(x_adv.clone(), grad, x, 0.03, 0.1, lo=0.1, hi=0.8, mask=remaining))

    @pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
    def test_the_threshold_itself_deactivates(self, any_backend, device, value):
        """0.1 in float32 is above 0.1: the threshold is compared in the dtype of the condition."""
        x, active = torch.zeros(1, 1, device=device), torch.ones(1, dtype=torch.bool, device=device)
        condition = fosc_step_(x.clone(), torch.ones_like(x), x, active, 0.1, value, value, backend=any_backend)
        assert condition.item() == torch.tensor(value).item()
        assert not active.item()

    def test_a_gradient_with_nan_keeps_the_example_active_where_it_is(self, backend):
        x = torch.full((2, 8), 0.5, device=backend)
        grad = torch.full_like(x, math.nan)
        for kind in ("reference", backend):
            x_adv, active = x.clone(), torch.tensor([True, False], device=backend)
            condition = fosc_step_(x_adv, grad, x, active, 0.1, 0.2, math.inf, backend=kind)
            assert condition.isnan().all()
            assert active.tolist() == [True, False]
            assert torch.equal(x_adv, x)

    def test_an_attack_on_a_linear_loss_deactivates_every_example(self, backend):
        _, grad, x = attack_tensors((5, 3, 4, 4), device=backend)
        x_adv, active = x.clone(), torch.ones(5, dtype=torch.bool, device=backend)
        conditions = [fosc_step_(x_adv, grad, x, active, 0.03, 0.1, 1e-4, lo=-1, hi=2) for _ in range(5)]
        assert all((b <= a + 1e-5).all() for a, b in pairwise(conditions))
        assert not active.any()
        torch.testing.assert_close(x_adv, x + 0.1 * grad.sign(), rtol=0, atol=2**-23)


class TestAtasStep:
    @pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(("min_step", "max_step"), [(0.0, math.inf), (0.05, 0.12), (0.1, 0.1)])
    def test_formula(self, backend, beta, min_step, max_step):
        x_adv, grad, x = attack_tensors((6, 3, 9), torch.float64, backend)
        v = torch.linspace(0.0, 50.0, 6, dtype=x.dtype, device=backend)
        got, new_v = x_adv.clone(), v.clone()
        bounds = {"min_step": min_step, "max_step": max_step}
        sizes = atas_step_(got, grad, x, new_v, eps=0.3, step_scale=0.4, c=3.0, beta=beta, **bounds, lo=0.1, hi=0.8)
        for i, (a, g, c, result) in enumerate(rows(x_adv, grad, x, got)):
            average = beta * v[i].item() + (1 - beta) * math.fsum(t * t for t in g)
            size = min(max(0.4 / (1 + math.sqrt(average) / 3.0), min_step), max_step)
            assert new_v[i].item() == pytest.approx(average, rel=2**-48)
            assert sizes[i].item() == pytest.approx(size, rel=2**-48)
            for j, stepped in enumerate(result):
                expected = a[j] + size * ((g[j] > 0) - (g[j] < 0))
                expected = min(max(min(max(expected, c[j] - 0.3), c[j] + 0.3), 0.1), 0.8)
                assert stepped == pytest.approx(expected, abs=2**-48)

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_step_follows_from_sizes_and_sizes_from_v(self, backend, shape, dtype):
        x_adv, grad, x = attack_tensors(shape, dtype, backend)
        got, v = x_adv.clone(), x.new_ones(len(x), dtype=computation_dtype(x.dtype))
        sizes = atas_step_(got, grad, x, v, **ATAS)
        assert torch.equal(got, pgd_linf_step_(x_adv.clone(), grad, x, sizes, ATAS["eps"]))
        expected = ATAS["step_scale"] / (1 + v.double().sqrt() / ATAS["c"])
        close(sizes, expected.clamp(ATAS["min_step"], ATAS["max_step"]).to(v.dtype), 0)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sizes_are_bounded_and_decrease_with_the_gradient(self, backend, dtype):
        x_adv, grad, x = attack_tensors((40, 30), dtype, backend)
        scale = torch.logspace(-8, 8, 40, dtype=dtype, device=backend)[:, None]
        sizes = atas_step_(x_adv, grad.sign() * scale, x, x.new_zeros(40), **ATAS)
        least, most = (torch.tensor(ATAS[name], dtype=dtype, device=backend) for name in ("min_step", "max_step"))
        assert sizes[0] == most
        assert sizes[-1] == least
        assert ((least <= sizes) & (sizes <= most)).all()
        assert (sizes.diff() <= 0).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])  # the square of 1e30 is not a float32
    def test_an_example_does_not_move_where_v_would_not_be_finite(self, backend, bad):
        x_adv, grad, x = attack_tensors((3, 21), device=backend)
        grad[1, 20] = bad
        for kind in ("reference", backend):
            got, v = x_adv.clone(), x.new_full((3,), 4.0)
            sizes = atas_step_(got, grad, x, v, **ATAS, backend=kind)
            assert torch.equal(got[1], x_adv[1])
            assert v[1] == 4.0
            assert sizes[1].item() == pytest.approx(0.2 / (1 + 2.0 / 5.0))
            assert (v[::2] != 4.0).all()
            assert not torch.equal(got[0], x_adv[0])


def _linf(x_adv, grad, x):
    mask = torch.arange(len(x), device=x.device) % 2 > 0
    return (
        pgd_linf_step_(x_adv.clone(), grad, x, 0.03, 0.1),
        pgd_linf_step_(x_adv.clone(), grad, x, row_norms(grad), 0.1, mask=mask),
    )


def _philox(x_adv, grad, x):
    index = (x_adv.flatten(1)[:, 0] * 1000).long()
    key = {"seed": 1, "purpose": Purpose.START}
    return philox_uniform(index, x.shape[1:], **key), philox_normal(index, x.shape[1:], **key)


def _crop_flip(x_adv, grad, x):
    images = (x.view(len(x), -1, 4, 4) * 255).byte()
    offsets = (images[:, 0, 0, 0] % 3).long()
    return tuple(
        crop_flip(images, offsets, offsets, offsets > 0, 1, positions=offsets, channels_last=last)
        for last in (False, True)
    )


def _weights(x_adv, grad, x):
    norms, inputs = row_norms(grad), row_norms(x)
    line = torch.zeros(2, dtype=torch.float64, device=x.device)
    return clip_weights(norms, 1.0), *regression_weights(inputs, norms, line, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in available_backends(), reason="the cuda kernels were not built")
class TestOnCuda:
    """Streams, CUDA graphs and large sizes."""

    EVERY = RUNS | {
        "pgd_linf_step_": _linf,
        "philox": _philox,
        "crop_flip": _crop_flip,
        "row_sums": lambda x_adv, grad, x: row_sums(grad.flatten(1), x.flatten(1)),
        "weights": _weights,
    }
    every_op = pytest.mark.parametrize("run", EVERY.values(), ids=EVERY.keys())

    @every_op
    @pytest.mark.parametrize("shape", [(6, 3, 4, 4), (3, 2, 128, 128)])  # one block a row, several blocks a row
    def test_a_captured_graph_follows_its_inputs(self, run, shape):
        inputs = attack_tensors(shape, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(*inputs)
        for seed in (1, 2):
            for t, new in zip(inputs, attack_tensors(shape, device="cuda", seed=seed), strict=True):
                t.copy_(new)
            expected = run(*inputs)
            graph.replay()
            torch.cuda.synchronize()
            assert all(map(torch.equal, captured, expected))

    @every_op
    def test_runs_on_the_current_stream(self, run):
        new = attack_tensors((6, 3, 128, 128), device="cuda")
        expected = run(*new)
        inputs = [torch.zeros_like(t) for t in new]
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)  # cycles: a kernel that does not wait reads zeros
            for t, value in zip(inputs, new, strict=True):
                t.copy_(value)
            got = run(*inputs)
            torch.cuda.current_stream().synchronize()
        assert all(map(torch.equal, got, expected))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 16), (7, 15), (1500, 49), (3, 1000), (2, 50_000)])
    def test_row_sums_are_those_in_float64(self, shape, dtype):
        wide = torch.randn(2, *shape, dtype=torch.float64).to(dtype).cuda()
        shifted = [t.new_empty(t.numel() + by)[by:].view_as(t).copy_(t) for by, t in enumerate(wide)]
        for g, x in (wide, shifted):
            expected = (g.double().sum(1), (g.double() * x.double()).sum(1))
            for got, truth in zip(row_sums(g, x), expected, strict=True):
                close(got, truth.to(dtype), shape[1], scale=8.0 * shape[1] ** 0.5)

    def test_more_than_2_to_the_31_elements(self):
        d = 3 * 224 * 224
        n = 2**31 // d + 3
        if torch.cuda.mem_get_info()[0] < 4 * 2 * n * d:
            pytest.skip("needs 17 GB of free memory")
        x, grad = (torch.zeros(n, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        grad[0], grad[-1], grad[-2] = 2.0, 1.0, -1.0
        norms = row_norms(grad)
        assert norms[[0, -2, -1]].tolist() == pytest.approx([2 * d**0.5, d**0.5, d**0.5])
        assert norms[1:-2].eq(0).all()
        x_adv = x.clone()
        pgd_linf_step_(x_adv, grad, x, 0.5, 1.0, lo=-1.0)
        assert torch.equal(x_adv[-3:], 0.5 * grad[-3:].sign())
        pgd_linf_step_(x_adv, grad, x, norms.sign() * 0.25, 1.0, lo=-1.0, mask=norms < 500)
        assert torch.equal(x_adv[-3:], 0.75 * grad[-3:].sign())
        assert x_adv[0].eq(0.5).all()
        assert x_adv[1:-2].eq(0).all()
        pgd_l2_step_(x_adv, grad, x, 1.0, 0.1, lo=-1.0)
        torch.testing.assert_close(row_norms(x_adv[-2:]), norms.new_full((2,), 0.1), rtol=2**-8, atol=0)


class TestContract:
    """What torch requires of an operator."""

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_opcheck(self, layout):
        op = torch.ops.pyengm
        x_adv, grad, x = (t.to(memory_format=layout) for t in attack_tensors((3, 2, 4, 5)))
        mask = torch.tensor([True, False, True])
        check = torch.library.opcheck
        check(op.row_norms.default, (grad,))
        check(op.pgd_l2_step_.default, (x_adv, grad, x, 0.1, 0.2, 0.0, 1.0, None, None))
        check(op.pgd_l2_step_.default, (x_adv, grad, x, 0.1, 0.2, 0.0, 1.0, torch.rand(3), mask))
        check(op.fosc.default, (x_adv, grad, x, 0.1, True))
        check(op.fosc_step_.default, (x_adv, grad, x, mask, 0.1, 0.2, 0.3, 0.0, 1.0))
        check(op.atas_step_.default, (x_adv, grad, x, torch.rand(3), 0.1, 0.2, 0.3, 0.0, math.inf, 0.5, 0.0, 1.0))

    def test_fullgraph_compile(self):
        def attack_step(x_adv, grad, x, active, v):
            x_adv, active, v = x_adv.clone(), active.clone(), v.clone()
            condition = fosc_step_(x_adv, grad, x, active, 0.03, 0.1, 0.0)
            sizes = atas_step_(x_adv, grad, x, v, **ATAS)
            pgd_l2_step_(x_adv, grad, x, sizes, 0.5, mask=active)
            return x_adv, active, v, condition, sizes, row_norms(x_adv), fosc(x_adv, grad, x, 0.1, norm="l2")

        compiled = torch.compile(attack_step, fullgraph=True, backend="aot_eager")
        for n in (4, 6):
            arguments = (*attack_tensors((n, 3, 5, 5)), torch.arange(n) % 2 > 0, torch.rand(n))
            assert all(map(torch.equal, compiled(*arguments), attack_step(*arguments)))

    def test_devices_without_kernels_run_the_reference(self):
        x_adv, grad, x = (torch.rand(4, 3, device="meta") for _ in range(3))
        assert row_norms(grad).shape == fosc(x_adv, grad, x, 0.1).shape == (4,)
        assert pgd_l2_step_(x_adv, grad, x, 0.1, 0.1).shape == (4, 3)
