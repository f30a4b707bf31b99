"""Norms of per-example conv gradients against autograd, one example at a time in float64."""

import math
import random

import pytest
import torch
from torch import Tensor

from pyengm.ops import conv_direct_sqnorm, conv_gradients, conv_gram_sqnorm
from pyengm.ops._register import CPU_MODULE

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(CPU_MODULE is None, reason="not built"))]
FORMS = [conv_gram_sqnorm, conv_direct_sqnorm]
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
UNIT = ((1, 1), (0, 0), (1, 1))


def batch(n, c, o, size, kernel, stride, padding, dilation, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, *size, generator=generator, dtype=torch.float64)
    y = torch.nn.functional.conv2d(x, x.new_zeros(o, c, *kernel), None, stride, padding, dilation)
    return x.to(dtype), torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients_by_autograd(x: Tensor, g: Tensor, kernel, stride, padding, dilation) -> Tensor:
    weight = torch.zeros(g.shape[1], x.shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    gradients = []
    for x_i, g_i in zip(x.double(), g.double(), strict=True):
        y = torch.nn.functional.conv2d(x_i[None], weight, None, stride, padding, dilation)
        gradients += torch.autograd.grad(y, weight, g_i[None])
    return torch.stack(gradients)


def geometries(count: int) -> list[tuple]:
    """Random shapes and windows: kernels 1 to 5, strides 1 to 3, padding 0 to 3, dilation 1 and 2, also non-square."""
    rng = random.Random(0)
    found = []
    while len(found) < count:
        n, c, o = rng.choice([1, 2, 3]), rng.choice([1, 3, 5, 16, 33]), rng.choice([1, 4, 7, 16, 40])
        size, kernel, stride, padding, dilation = (
            (rng.randint(*limits), rng.randint(*limits)) for limits in ((1, 21), (1, 5), (1, 3), (0, 3), (1, 2))
        )
        spans = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        if all(s + 2 * p > span for s, p, span in zip(size, padding, spans, strict=True)):
            found.append((n, c, o, size, kernel, stride, padding, dilation))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
class TestAgainstAutograd:
    def check(self, shape, dtype, backend):
        x, g = batch(*shape, dtype=dtype)
        expected = gradients_by_autograd(x, g, *shape[4:])
        sqnorm = expected.square().sum((1, 2, 3, 4))
        close = {"rtol": TOLERANCE[dtype], "atol": 1e-30}
        for form in FORMS:
            got = form(x, g, *shape[4:], backend=backend)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), sqnorm, **close)
        got, gradients = conv_gradients(x, g, *shape[4:], backend=backend)
        torch.testing.assert_close(got.double(), sqnorm, **close)
        assert gradients.dtype == dtype
        largest = expected.abs().max().item()
        torch.testing.assert_close(gradients.double(), expected, rtol=0, atol=TOLERANCE[dtype] * largest)

    def test_random_geometries(self, dtype, backend):
        for shape in geometries(150):
            self.check(shape, dtype, backend)

    @pytest.mark.parametrize(
        "shape",
        [
            (2, 1, 1, (1, 1), (1, 1), *UNIT),
            (2, 3, 64, (32, 32), (3, 3), (1, 1), (1, 1), (1, 1)),
            (2, 32, 32, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)),
            (2, 16, 32, (32, 32), (3, 3), (2, 2), (1, 1), (1, 1)),
            (2, 16, 32, (16, 16), (1, 1), (2, 2), (0, 0), (1, 1)),
            (2, 48, 40, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
            (1, 8, 4, (3, 50), (1, 7), (1, 3), (0, 9), (1, 4)),  # reach beyond a panel
            (1, 2, 3, (4, 3), (4, 3), *UNIT),  # one output pixel
            (1, 2, 3, (4, 4), (1, 1), (1, 1), (3, 2), (1, 1)),  # outputs that see padding only
            (1, 2, 3, (2, 2), (5, 5), (3, 3), (6, 6), (2, 2)),
            (1, 2, 3, (2, 9), (2, 2), (7, 5), (1, 0), (1, 1)),  # stride beyond the image
        ],
    )
    def test_chosen_geometries(self, shape, dtype, backend):
        self.check(shape, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vanishing_gradient_is_not_negative(backend):
    """Terms cancel where g sums to zero over equal patches, as after a norm layer; a square is still not negative."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, 1, 1, generator=generator).expand(50, 8, 9, 9)
    g = torch.randn(50, 8, 9, 9, generator=generator)
    g = g - g.mean((2, 3), keepdim=True)
    got = conv_gram_sqnorm(x, g, (1, 1), backend=backend)
    scale = x.square().sum((1, 2, 3)) * g.square().sum((1, 2, 3))
    assert (got >= 0).all()
    assert (got <= 1e-6 * scale).all()


@pytest.mark.skipif(CPU_MODULE is None, reason="not built")
@pytest.mark.parametrize("form", FORMS)
class TestMemory:
    SHAPE = (3, 5, 6, (9, 7), (3, 2), (2, 1), (1, 1), (1, 1))

    @pytest.mark.parametrize("layout", ["channels_last", "transposed", "offset", "expanded"])
    def test_any_strides(self, form, layout):
        x, g = batch(*self.SHAPE)
        change = {
            "channels_last": lambda t: t.to(memory_format=torch.channels_last),
            "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
            "offset": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1, 1, 0))[:, 1:, 3:-1, 1:-2],
            "expanded": lambda t: t[:1, :1].expand_as(t),
        }[layout]
        x, g = change(x), change(g)
        expected = gradients_by_autograd(x, g, *self.SHAPE[4:]).square().sum((1, 2, 3, 4))
        torch.testing.assert_close(form(x, g, *self.SHAPE[4:]), expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_nan_and_inf_stay_in_their_example(self, form, poison):
        x, g = batch(5, 5, 6, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), dtype=torch.float32)
        expected = form(x, g, (3, 3), padding=(1, 1))
        x[1, 2, 4, 3] = g[3, 1, 2, 2] = poison
        got = form(x, g, (3, 3), padding=(1, 1))
        good = torch.tensor([0, 2, 4])
        assert torch.equal(got[good], expected[good])
        assert not got[[1, 3]].isfinite().any()

    def test_overwrites_what_its_memory_held(self, form):
        x, g = batch(*self.SHAPE, dtype=torch.float32)
        out, gradients = torch.full((3,), math.nan), torch.full((3, 6, 5, 3, 2), math.nan)
        layouts = [[*t.shape, *t.stride()] for t in (x, g)]
        window = [size for pair in self.SHAPE[4:] for size in pair]
        outputs = [t.data_ptr() for t in (out, gradients)][: FORMS.index(form) + 1]
        kernel = getattr(CPU_MODULE, f"{form.__name__}_f32")
        kernel(*outputs, x.data_ptr(), g.data_ptr(), *layouts, window)
        assert torch.equal(out, form(x, g, *self.SHAPE[4:]))
        assert form is conv_gram_sqnorm or torch.equal(gradients, conv_gradients(x, g, *self.SHAPE[4:])[1])

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_threads_and_other_examples_change_no_bit(self, form, dtype):
        x, g = batch(7, 9, 11, (13, 10), (3, 3), (1, 1), (1, 1), (1, 1), dtype=dtype)
        window = ((3, 3), (1, 1), (1, 1), (1, 1))
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(form(x, g, *window))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)
        assert torch.equal(form(x[4:5], g[4:5], *window), results[0][4:5])

    def test_empty_batch(self, form):
        assert form(torch.zeros(0, 2, 4, 4), torch.zeros(0, 3, 2, 2), (3, 3)).shape == (0,)


@pytest.mark.parametrize("op", [*FORMS, conv_gradients])
class TestContract:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.zeros(2, 3, 5)}, r"x of shape \(n, C, H, W\)"),
            ({"x": torch.zeros(2, 3, 5, 5).half()}, "float32 or float64"),
            ({"x": torch.zeros(2, 0, 5, 5)}, "x of shape"),
            ({"g": torch.zeros(2, 4, 5, 4)}, r"g of shape \(2, O, 5, 5\)"),
            ({"g": torch.zeros(3, 4, 5, 5)}, "g of shape"),
            ({"g": torch.zeros(2, 4, 5, 5).double()}, "g in torch.float32"),
            ({"g": torch.zeros(2, 4, 5, 5, device="meta")}, "on cpu"),
            ({"kernel": (3,)}, "as kernel"),
            ({"kernel": (0, 3)}, "as kernel"),
            ({"kernel": (9, 9)}, "g of shape"),
            ({"stride": (0, 1)}, "as stride"),
            ({"padding": (-1, 1)}, "as padding"),
            ({"dilation": (1, 0)}, "as dilation"),
        ],
    )
    def test_bad_arguments(self, op, change, message):
        good = {"x": torch.zeros(2, 3, 5, 5), "g": torch.zeros(2, 4, 5, 5), "kernel": (3, 3), "padding": (1, 1)}
        with pytest.raises(ValueError, match=f"{op.__name__}: expected .*{message}"):
            op(**(good | change))

    def test_requires_grad(self, op):
        x, g = torch.zeros(2, 3, 5, 5, requires_grad=True), torch.zeros(2, 4, 5, 5)
        with pytest.raises(RuntimeError, match="no derivative"):
            op(x, g, (1, 1))
        with torch.no_grad():
            op(x, g, (1, 1))

    def test_opcheck(self, op):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, g = (t.to(memory_format=layout) for t in batch(2, 3, 4, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1)))
            overload = getattr(torch.ops.pyengm, op.__name__).default
            torch.library.opcheck(overload, (x, g, [3, 3], [1, 1], [1, 1], [1, 1]))
