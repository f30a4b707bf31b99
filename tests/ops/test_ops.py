"""Every op on every backend at hand against its reference, and the contract that all ops share."""

import math

import pytest
import torch
from helpers.attack_tensors import attack_tensors

from pyengm.ops import (
    Purpose,
    clip_weights,
    pgd_linf_step_,
    philox_normal,
    philox_uniform,
    reference,
    row_norms,
)
from pyengm.ops._memory_format import computation_dtype
from pyengm.ops._register import CPU_MODULE

SHAPES = [(1, 1), (5, 3, 7, 11), (3, 123), (2, 3, 224, 224), (129, 1, 5, 5)]
DTYPES = [torch.float32, torch.float64]
STORAGE = [*DTYPES, torch.bfloat16, torch.float16]


class TestPgdLinfStep:
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("per_example", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_bitwise_equal_to_reference(self, backend, shape, dtype, per_example, masked):
        x_adv, grad, x = attack_tensors(shape, dtype, backend)
        n = shape[0]
        step = torch.linspace(0.0, 0.2, n, dtype=computation_dtype(x.dtype), device=backend) if per_example else 0.03
        mask = (torch.arange(n, device=backend) % 3 > 0) if masked else None
        expected = pgd_linf_step_(x_adv.clone(), grad, x, step, 0.1, mask=mask, backend="reference")
        got = pgd_linf_step_(x_adv.clone(), grad, x, step, 0.1, mask=mask, backend=backend)
        assert torch.equal(got, expected)
        if masked:
            assert torch.equal(got[~mask], x_adv[~mask])

    def test_formula_in_float64(self, backend):
        x_adv, grad, x = attack_tensors((4, 3, 9), torch.float64, backend)
        got = pgd_linf_step_(x_adv.clone(), grad, x, 0.05, 0.1, lo=0.2, hi=0.9)
        for a, g, c, result in zip(*(t.flatten().tolist() for t in (x_adv, grad, x, got)), strict=True):
            v = a + 0.05 * ((g > 0) - (g < 0))
            v = min(max(min(max(v, c - 0.1), c + 0.1), 0.2), 0.9)
            assert result == v

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bit_types_are_computed_in_float32_and_rounded_once(self, backend, dtype):
        everything = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).to(backend)[:, None]
        wide = everything.float()[:, 0]
        unbounded = {"eps": math.inf, "lo": -math.inf, "hi": math.inf}
        norms = row_norms(everything, backend=backend)  # |value|, in float32
        torch.testing.assert_close(norms, wide.abs(), rtol=0, atol=0, equal_nan=True)
        zeros = torch.zeros_like(everything)
        bits = torch.randint(-(2**31), 2**31, (2**16,), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
        finite = wide[wide.isfinite()].sort().values
        ties = (finite[1:].double() + finite[:-1].double()).div(2).float()  # float32 has at least 8 bits more
        beside = torch.tensor(math.inf, device=backend)
        for values in (
            bits.to(torch.int32).view(torch.float32).to(backend),
            wide,
            *(t for middle in (ties, -ties) for t in (middle, middle.nextafter(beside), middle.nextafter(-beside))),
            torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 3.3961775e38, 3.4e38], device=backend),
        ):
            zero = zeros.new_zeros(len(values), 1)
            got = pgd_linf_step_(zero.clone(), torch.ones_like(zero), zero, values, **unbounded, backend=backend)[:, 0]
            torch.testing.assert_close(got, values.to(dtype), rtol=0, atol=0, equal_nan=True)

    def test_values_per_example_are_never_of_16_bits(self):
        x_adv, grad, x = attack_tensors((2, 3), torch.bfloat16)
        with pytest.raises(ValueError, match=r"step_size of shape \(2,\) in torch.float32"):
            pgd_linf_step_(x_adv, grad, x, torch.ones(2, dtype=torch.bfloat16), 0.1)

    def test_a_nan_gradient_moves_nothing(self, backend):
        x = torch.full((2, 8), 0.5, device=backend)
        for kind in ("reference", backend):
            got = pgd_linf_step_(x.clone(), torch.full_like(x, math.nan), x, 0.1, 0.2, backend=kind)
            assert torch.equal(got, x)

    @pytest.mark.parametrize("dtype", STORAGE)
    def test_nan_in_x_or_x_adv_is_kept(self, any_backend, device, dtype):
        x_adv, grad, x = attack_tensors((3, 21), dtype, device)
        x[0, 3] = x_adv[1, 20] = x[1, 5] = x_adv[1, 5] = math.nan
        expected = x.isnan() | x_adv.isnan()
        for eps in (0.0, 0.1, math.inf):
            got = pgd_linf_step_(x_adv.clone(), grad, x, 0.03, eps, backend=any_backend)
            assert torch.equal(got.isnan(), expected)
        mask = torch.tensor([False, True, True], device=device)
        got = pgd_linf_step_(x_adv.clone(), grad, x, 0.03, 0.1, mask=mask, backend=any_backend)
        assert torch.equal(got[0], x_adv[0])
        assert torch.equal(got[1:].isnan(), expected[1:])

    def test_channels_last_and_other_strides(self, backend):
        x_adv, grad, x = attack_tensors((3, 4, 6, 5), device=backend)
        expected = pgd_linf_step_(x_adv.clone(), grad, x, 0.03, 0.1, backend="reference")
        channels_last = x_adv.to(memory_format=torch.channels_last, copy=True)
        mask = torch.ones(3, dtype=torch.bool, device=backend)
        for m in (None, mask):
            got = pgd_linf_step_(channels_last.clone(), grad, x, 0.03, 0.1, mask=m)
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(got, expected)
        strided = grad.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(pgd_linf_step_(x_adv.clone(), strided, x, 0.03, 0.1), expected)

    def test_strided_step_and_mask(self, backend):
        x_adv, grad, x = attack_tensors((6, 5), device=backend)
        steps = torch.rand(12, device=backend)[::2]
        mask = (torch.arange(12, device=backend) % 4 == 0)[::2]
        expected = pgd_linf_step_(x_adv.clone(), grad, x, steps, 0.1, mask=mask, backend="reference")
        assert torch.equal(pgd_linf_step_(x_adv.clone(), grad, x, steps, 0.1, mask=mask), expected)

    def test_empty_batch(self, backend):
        x = torch.empty(0, 3, 4, 4, device=backend)
        assert pgd_linf_step_(x, x.clone(), x.clone(), 0.1, 0.1).shape == (0, 3, 4, 4)

    def test_bumps_the_version(self, backend):
        x_adv, grad, x = attack_tensors((2, 3), device=backend)
        weight = torch.ones_like(x_adv, requires_grad=True)
        product = x_adv * weight  # saves x_adv
        pgd_linf_step_(x_adv, grad, x, 0.1, 0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()

    def test_inference_mode(self, backend):
        with torch.inference_mode():
            x_adv, grad, x = attack_tensors((2, 3), device=backend)
            expected = pgd_linf_step_(x_adv.clone(), grad, x, 0.1, 0.1, backend="reference")
            assert torch.equal(pgd_linf_step_(x_adv, grad, x, 0.1, 0.1), expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"grad": torch.zeros(2, 4)}, r"grad of shape \(2, 3\)"),
            ({"grad": torch.zeros(2, 3).double()}, "in torch.float32"),
            ({"x": torch.zeros(2, 3, device="meta")}, "on cpu"),
            ({"x_adv": torch.zeros(2, 3).int()}, "float32, float64, bfloat16 or float16"),
            ({"x_adv": torch.zeros(2, 3).half()}, "grad of shape .* in torch.float16"),
            ({"x_adv": torch.zeros(3, 2).t()}, "contiguous or channels_last"),
            ({"step_size": torch.zeros(3)}, r"step_size of shape \(2,\)"),
            ({"step_size": math.nan}, "finite step_size"),
            ({"eps": -1.0}, "eps >= 0"),
            ({"eps": math.nan}, "eps >= 0"),
            ({"lo": 2.0}, "lo <= hi"),
            ({"mask": torch.ones(2)}, "mask of shape"),
            ({"backend": "opencl"}, "expected None or one of"),
        ],
    )
    def test_bad_arguments(self, change, message):
        x_adv, grad, x = attack_tensors((2, 3))
        arguments = {"x_adv": x_adv, "grad": grad, "x": x, "step_size": 0.1, "eps": 0.1} | change
        with pytest.raises(ValueError, match=message):
            pgd_linf_step_(**arguments)

    def test_overlap(self):
        memory = torch.rand(3, 4)
        with pytest.raises(ValueError, match="separate memory"):
            pgd_linf_step_(memory[:2], memory[1:], torch.rand(2, 4), 0.1, 0.1)

    def test_requires_grad(self):
        x_adv, grad, x = attack_tensors((2, 3))
        with pytest.raises(RuntimeError, match="no derivative"):
            pgd_linf_step_(x_adv, grad, x.requires_grad_(), 0.1, 0.1)
        with torch.no_grad():
            pgd_linf_step_(x_adv.requires_grad_(), grad, x, 0.1, 0.1)


class TestClipWeights:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("alpha", [1e-3, 1.0, 5.0, math.inf])
    def test_bitwise_equal_to_reference(self, backend, dtype, alpha):
        tiny = torch.finfo(dtype).smallest_normal
        norms = torch.tensor([0.0, tiny, 1e-30, 0.5, 1.0, 5.0, 7.3, 1e30, math.inf, math.nan], dtype=dtype)
        norms = norms.to(backend)
        got = clip_weights(norms, alpha, backend=backend)
        torch.testing.assert_close(got, clip_weights(norms, alpha, backend="reference"), rtol=0, atol=0, equal_nan=True)

    def test_values(self, any_backend, device):
        norms = torch.tensor([0.0, 1e-310, 2.0, 4.0, 8.0, math.inf, math.nan], dtype=torch.float64, device=device)
        got = clip_weights(norms, 4.0, backend=any_backend).tolist()
        assert got[:6] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
        assert math.isnan(got[6])

    def test_no_weighted_norm_exceeds_alpha(self):
        norms = torch.rand(10_000, dtype=torch.float64).mul_(10)
        assert (clip_weights(norms, 3.0) * norms).max() <= 3.0 * (1 + 2**-52)  # one rounding of the quotient

    def test_strided_and_empty(self, backend):
        norms = torch.rand(20, device=backend)
        assert torch.equal(clip_weights(norms[::2], 0.3), clip_weights(norms[::2].clone(), 0.3))
        assert clip_weights(norms[:0], 0.3).shape == (0,)

    @pytest.mark.parametrize(
        ("norms", "alpha"),
        [
            (torch.ones(2, 2), 1.0),
            (torch.ones(2, dtype=torch.int64), 1.0),
            (torch.ones(2, dtype=torch.bfloat16), 1.0),
            (torch.ones(2), 0.0),
            (torch.ones(2), math.nan),
        ],
    )
    def test_bad_arguments(self, norms, alpha):
        with pytest.raises(ValueError, match="clip_weights: expected"):
            clip_weights(norms, alpha)

    def test_requires_grad(self):
        with pytest.raises(RuntimeError, match="no derivative"):
            clip_weights(torch.ones(3, requires_grad=True), 1.0)


class TestPhilox:
    # counter, key, output: the vectors that the authors publish with Random123 (kat_vectors, philox4x32 10).
    VECTORS = (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )

    @pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
    def test_published_vectors(self, counter, key, output):
        words = reference.philox4x32([torch.tensor([c]) for c in counter], key)
        assert tuple(w.item() for w in words) == output
        assert tuple(CPU_MODULE.philox4x32(counter, key)) == output

    def test_counter_layout(self):
        """Value 4b + i of an example is word i of the counter (b, example, epoch, purpose + 2**16 draw)."""
        seed, purpose, epoch, example, draw = 2**40 + 5, Purpose.START, 7, 2**31 + 3, 9
        got = philox_uniform(torch.tensor([example]), (10,), seed=seed, purpose=purpose, epoch=epoch, draw=draw)[0]
        for j in range(10):
            counter = [torch.tensor([c]) for c in (j // 4, example, epoch, purpose + 2**16 * draw)]
            word = reference.philox4x32(counter, (5, 2**8))[j % 4].item()
            assert got[j].item() == (word >> 8) / 2**24

    @pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 257, 3072])
    @pytest.mark.parametrize("n", [0, 1, 7])
    @pytest.mark.parametrize("philox", [philox_uniform, philox_normal])
    def test_equal_to_reference(self, backend, philox, n, count):
        index = torch.arange(n, device=backend) * 10**8 + 3
        key = {"seed": 2**62 + 11, "purpose": Purpose.START, "epoch": 2**32 - 1, "draw": 3}
        got = philox(index, (count,), **key, backend=backend)
        expected = philox(index, (count,), **key, backend="reference")
        if philox is philox_uniform:
            assert torch.equal(got, expected)
        else:  # log, sin and cos of two libraries differ in the last bit of a double, rarely in that of a float
            torch.testing.assert_close(got, expected, rtol=2**-23, atol=0)

    @pytest.mark.parametrize("philox", [philox_uniform, philox_normal])
    def test_values_belong_to_the_example(self, philox):
        key = {"seed": 3, "purpose": Purpose.START}
        index = torch.tensor([5, 2, 9, 2**32 - 1])
        whole = philox(index, (3, 5), **key)
        order = torch.tensor([3, 0, 2, 1])
        assert torch.equal(philox(index[order], (3, 5), **key), whole[order])
        assert torch.equal(philox(index[1:2], (3, 5), **key), whole[1:2])
        assert torch.equal(philox(torch.arange(20)[::2][1:2], (15,), **key).flatten(), whole[1].flatten())

    @pytest.mark.parametrize("change", [{"seed": 4}, {"seed": 3 + 2**32}, {"epoch": 1}, {"draw": 1}, {"purpose": 0}])
    def test_every_part_of_the_key_counts(self, change):
        key = {"seed": 3, "purpose": Purpose.START, "epoch": 0, "draw": 0}
        index = torch.arange(4)
        assert (
            not torch.isclose(philox_uniform(index, (64,), **key), philox_uniform(index, (64,), **(key | change)))
            .any(dim=1)
            .all()
        )

    def test_distributions(self):
        """Kolmogorov distance below 1.63 / sqrt(n), the 1 % point of the test; the values are fixed by the seed."""
        n = 200 * 500
        uniform = philox_uniform(torch.arange(200), (500,), seed=1, purpose=Purpose.START).flatten().double()
        normal = philox_normal(torch.arange(200), (500,), seed=1, purpose=Purpose.START).flatten().double()
        assert uniform.min() >= 0
        assert uniform.max() < 1
        steps = torch.arange(1, n + 1, dtype=torch.float64) / n
        for values in (uniform, torch.special.ndtr(normal)):
            assert (values.sort().values - steps).abs().max() < 1.63 / math.sqrt(n)
        pairs = normal.view(-1, 2)
        assert (pairs[:, 0] * pairs[:, 1]).mean().abs() < 4 / math.sqrt(len(pairs))

    @pytest.mark.parametrize(
        "change",
        [{"seed": -1}, {"seed": 2**63}, {"epoch": -1}, {"draw": 2**16}, {"index": torch.ones(3)}],
    )
    def test_bad_keys(self, change):
        arguments = {"index": torch.arange(3), "seed": 0, "purpose": Purpose.START} | change
        with pytest.raises(ValueError, match="philox: expected"):
            philox_uniform(shape=(2,), **arguments)


class TestContract:
    """What torch requires of an operator."""

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_opcheck(self, layout):
        op = torch.ops.pyengm
        x_adv, grad, x = (t.to(memory_format=layout) for t in attack_tensors((3, 2, 4, 5)))
        mask = torch.tensor([True, False, True])
        torch.library.opcheck(op.pgd_linf_step_.default, (x_adv, grad, x, 0.1, 0.2, 0.0, 1.0, None, None))
        torch.library.opcheck(op.pgd_linf_step_.default, (x_adv, grad, x, 0.1, 0.2, 0.0, 1.0, torch.rand(3), mask))
        torch.library.opcheck(op.clip_weights.default, (torch.rand(5), 0.5))
        for name in ("philox_uniform", "philox_normal"):
            torch.library.opcheck(getattr(op, name).default, (torch.arange(4), 6, 1, 2, 3))

    def test_fullgraph_compile(self):
        def attack_step(x_adv, grad, x, index, norms):
            x_adv = x_adv + 0.01 * philox_uniform(index, x.shape[1:], seed=1, purpose=Purpose.START)
            x_adv = x_adv + 0.01 * philox_normal(index, x.shape[1:], seed=1, purpose=Purpose.RADIUS)
            pgd_linf_step_(x_adv, grad, x, 0.03, 0.1)
            return x_adv * clip_weights(norms, 0.5).view(-1, 1, 1, 1)

        compiled = torch.compile(attack_step, fullgraph=True, backend="aot_eager")
        for n in (4, 6):
            x_adv, grad, x = attack_tensors((n, 3, 5, 5))
            arguments = (x_adv, grad, x, torch.arange(n), torch.rand(n))
            assert torch.equal(compiled(*arguments), attack_step(*arguments))

    def test_devices_without_kernels_run_the_reference(self):
        with torch.device("meta"):
            assert clip_weights(torch.rand(4), 1.0).shape == (4,)
            assert philox_uniform(torch.arange(4), (2, 3), seed=0, purpose=Purpose.START).shape == (4, 2, 3)
