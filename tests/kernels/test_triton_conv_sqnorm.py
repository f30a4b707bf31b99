"""The Triton kernels against float64: in Triton's interpreter, and on a GPU where there is one.

TRITON_INTERPRET must be set before Triton is imported, so kernels are interpreted in a process of their own.
"""

import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from helpers.memory import nan_in_fresh_memory
from torch import Tensor

from pyengm.kernels import HAS_TRITON
from pyengm.kernels.conv_cost_model import GRAM_TILES, DirectTile, gram_tile
from pyengm.kernels.conv_shape import ConvShape
from pyengm.ops import reference

if HAS_TRITON:
    import triton

    from pyengm.kernels.conv_direct_sqnorm import conv_direct_sqnorm, conv_direct_sqnorm_kernel, conv_gradients
    from pyengm.kernels.conv_gram_sqnorm import conv_gram_sqnorm

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

UNIT = ((1, 1), (0, 0), (1, 1))
# n, C, O, size, kernel, stride, padding, dilation
SHAPES = [
    (3, 16, 32, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 5, 7, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 19, 33, (7, 5), (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 16, 24, (8, 7), (1, 1), (2, 2), (0, 0), (1, 1)),
    (2, 17, 70, (5, 4), (1, 1), *UNIT),
    (2, 18, 20, (6, 5), (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 3, 16, (13, 10), (5, 3), (2, 1), (2, 0), (1, 2)),
    (1, 33, 16, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 16, 5, (7, 6), (2, 4), (3, 1), (1, 2), (1, 1)),
]
# channels in and out, height, stride, kernel
LAYERS = [
    *((3, 64, 32, 1, 3), (64, 64, 32, 1, 3), (128, 128, 16, 1, 3), (256, 256, 8, 1, 3), (512, 512, 4, 1, 3)),
    *((64, 128, 32, 2, 3), (256, 512, 8, 2, 3), (128, 256, 16, 2, 1)),
]
TYPES = [torch.float32, torch.bfloat16, torch.float16]

Run = Callable[..., None]


def _start_interpreter() -> None:
    torch.set_num_threads(1)
    if isinstance(conv_direct_sqnorm_kernel, triton.JITFunction):
        raise RuntimeError("Triton was imported before TRITON_INTERPRET was set")


def _in_nan_memory(check: Callable[..., None], device: str, *arguments: object) -> None:
    """check(device, *arguments) in a process whose fresh memory is NaN."""
    with nan_in_fresh_memory():
        assert torch.empty(3, device=device).isnan().all()
        check(device, *arguments)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=_start_interpreter) as pool:
            pool.submit(os.getpid).result()  # starts it while the variable is set
            yield lambda check, *arguments: pool.submit(_in_nan_memory, check, "cpu", *arguments).result()


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request) -> Run:
    """run(check, *arguments): check(device, *arguments) where the kernels run."""
    if request.param == "cuda":
        return lambda check, *arguments: _in_nan_memory(check, "cuda", *arguments)
    return request.getfixturevalue("interpreter")


def operands(device: str, shape: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, tuple]:
    """x, g in channels_last and the window; new values each time on a GPU, the same ones in the interpreter."""
    n, c, o, size, *window = shape
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    x = torch.randn(n, c, *size, generator=generator)
    out = torch.nn.functional.conv2d(x, torch.zeros(o, c, *window[0]), None, *window[1:]).shape
    g = torch.randn(out, generator=generator)
    x, g = (t.to(device, dtype).contiguous(memory_format=torch.channels_last) for t in (x, g))
    return x, g, tuple(window)


def expected(x: Tensor, g: Tensor, window: tuple) -> tuple[Tensor, Tensor]:
    return reference.conv_gradients(x.double(), g.double(), *window)


def rounding(x: Tensor, g: Tensor, window: tuple) -> float:
    """Relative error of a square: additions round by up to 2^-24 each; the longest sums of either form, twice."""
    terms = math.prod(g.shape[2:]) + math.prod(window[0]) * (x.shape[1] + g.shape[1])
    return 2 * terms * 2.0**-24


def check_close(got: Tensor, x: Tensor, g: Tensor, window: tuple) -> None:
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected(x, g, window)[0], rtol=rounding(x, g, window), atol=0)


def check_shape(device: str, shape: tuple, dtype: torch.dtype) -> None:
    x, g, window = operands(device, shape, dtype)
    got, gradients = conv_gradients(x, g, window)
    check_close(got, x, g, window)
    truth = expected(x, g, window)[1]
    atol = rounding(x, g, window) * truth.abs().max().item()
    torch.testing.assert_close(gradients.double(), truth, rtol=0, atol=atol)
    check_close(conv_gram_sqnorm(x, g, window), x, g, window)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(run, shape, dtype):
    run(check_shape, shape, dtype)


def check_elements_far_apart(device: str) -> None:
    """A sequence-first activation: channels innermost, and the next position a whole batch further."""
    channels, positions, step = 16, 5, 2**29 + 64
    memory = torch.from_numpy(np.zeros((positions - 1) * step + channels, np.float16))  # untouched pages do not exist
    x = memory.as_strided((1, channels, positions, 1), (channels, 1, step, 1)).copy_(torch.randn(1, 16, positions, 1))
    g = torch.randn(1, 16, positions, 1).half()
    window = ((1, 1), *UNIT)
    check_close(conv_direct_sqnorm(x, g, window), x, g, window)
    check_close(conv_gram_sqnorm(x, g, window), x, g, window)


def test_elements_far_apart(interpreter):
    interpreter(check_elements_far_apart)


def check_gram_forms(device: str, shape: tuple) -> None:
    """Both axes of the offsets in either Gram matrix, in one tile and in several."""
    x, g, window = operands(device, shape)
    tile = gram_tile(ConvShape.of(x, g, *window))
    for rows, columns, (pixels, _, warps) in itertools.product((True, False), (True, False), GRAM_TILES[::2]):
        tile = tile._replace(rows_in_x=rows, columns_in_x=columns, pixels=pixels, warps=warps)
        check_close(conv_gram_sqnorm(x, g, window, tile=tile), x, g, window)


@pytest.mark.parametrize("shape", [SHAPES[k] for k in (1, 2, 5, 8)], ids=str)
def test_gram_forms(run, shape):
    run(check_gram_forms, shape)


def check_direct_tiles(device: str, shape: tuple) -> None:
    x, g, window = operands(device, shape)
    tiles = [
        DirectTile(16, 16, 16, 3, False, 4, 3),
        DirectTile(32, 16, 16, 1, False, 4, 2),
        DirectTile(16, 32, 32, 1, True, 4, 3),
        DirectTile(64, 64, 16, 3, False, 8, 3),
    ]
    for tile in tiles:
        check_close(conv_direct_sqnorm(x, g, window, tile=tile), x, g, window)


@pytest.mark.parametrize("shape", [SHAPES[k] for k in (1, 2)], ids=str)
def test_direct_tiles(run, shape):
    run(check_direct_tiles, shape)


def check_layouts(device: str) -> None:
    x, g, window = operands(device, (4, 6, 20, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1)))
    truth = expected(x, g, window)[0]
    wide = torch.stack([x, x], 2).flatten(1, 2)[:, ::2]  # every other channel
    some = torch.cat([g, g], 3)[..., :5]
    for own, other in ((x.contiguous(), g), (x, g.contiguous()), (wide, g), (x, some)):
        for form in (conv_direct_sqnorm, conv_gram_sqnorm):
            got = form(own, other, window)
            torch.testing.assert_close(got.double(), truth, rtol=rounding(x, g, window), atol=0)
    constant = g[:1, :, :1, :1].expand_as(g)  # as the gradient of a mean over pixels is
    for form in (conv_direct_sqnorm, conv_gram_sqnorm):
        check_close(form(x, constant, window), x, constant, window)
        assert form(x[:0], g[:0], window).shape == (0,)


def test_layouts(run):
    run(check_layouts)


def check_linear(device: str, dtype: torch.dtype) -> None:
    """A linear layer with positions: a (n, T, I), g (n, T, O), as a convolution of one offset."""
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(3, 11, k, generator=generator).to(device, dtype) for k in (37, 18))
    truth = (g.double().mT @ a.double()).square().sum((1, 2))
    x, g, window = a.mT.unsqueeze(3), g.mT.unsqueeze(3), ((1, 1), *UNIT)
    for got in (conv_direct_sqnorm(x, g, window), conv_gram_sqnorm(x, g, window)):
        torch.testing.assert_close(got.double(), truth, rtol=rounding(x, g, window), atol=0)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))
def test_linear_layers(run, dtype):
    run(check_linear, dtype)


def check_ieee(device: str) -> None:
    x, g, window = operands(device, SHAPES[1])
    check_close(conv_direct_sqnorm(x, g, window, precision="ieee"), x, g, window)
    check_close(conv_gram_sqnorm(x, g, window, precision="ieee"), x, g, window)


def test_ieee_products(run):
    run(check_ieee)


def check_non_finite(device: str, value: float) -> None:
    x, g, window = operands(device, (5, 5, 6, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1)))
    for form in (conv_direct_sqnorm, conv_gram_sqnorm):
        whole = form(x, g, window)
        assert torch.equal(form(x[2:3], g[2:3], window), whole[2:3])  # the other examples change no bit
        a, b = x.clone(), g.clone()
        a[1, 2, 4, 3] = b[3, 1, 2, 2] = value
        got = form(a, b, window)
        assert torch.equal(got[[0, 2, 4]], whole[[0, 2, 4]])
        assert not got[[1, 3]].isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_stay_in_their_example(run, value):
    run(check_non_finite, value)


@pytest.mark.gpu
class TestOnTheGpu:
    """Sizes of real layers, with new values in every run."""

    @pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t).removeprefix("torch."))
    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    def test_layers(self, layer, dtype):
        c, o, height, stride, k = layer
        shape = (9, c, o, (height, height), (k, k), (stride, stride), (k // 2, k // 2), (1, 1))
        _in_nan_memory(check_shape, "cuda", shape, dtype)

    @pytest.mark.parametrize("form", ["direct", "gram"])
    def test_capture(self, form):
        """A replay of a captured launch computes from the values that its operands have then."""
        x, g, window = operands("cuda", SHAPES[0], torch.bfloat16)
        run = conv_gram_sqnorm if form == "gram" else conv_direct_sqnorm
        run(x, g, window)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run(x, g, window)
        x.copy_(torch.randn_like(x))
        graph.replay()
        check_close(got, x, g, window)

    def test_deterministic(self):
        x, g, window = operands("cuda", (64, 64, 64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)))
        for form in (conv_direct_sqnorm, conv_gram_sqnorm):
            assert torch.equal(form(x, g, window), form(x, g, window))

    def test_default_tiles_fit(self):
        """Shapes from 1 to 4096 channels: none needs more shared memory or registers than this GPU has."""
        for c, o in ((1, 1), (1024, 4096), (2048, 512)):
            x, g, window = operands("cuda", (1, c, o, (7, 7), (1, 1), *UNIT), torch.bfloat16)
            check_close(conv_direct_sqnorm(x, g, window), x, g, window)
            check_close(conv_gram_sqnorm(x, g, window), x, g, window)
