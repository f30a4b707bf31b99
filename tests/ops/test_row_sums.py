"""Sums of rows against float64, and the contract of the op."""

import math

import pytest
import torch

from pyengm.ops import row_sums
from pyengm.ops._register import CPU_MODULE

SHAPES = [(1, 1), (3, 5), (40, 16), (7, 15), (5, 256), (5, 257), (3, 1000), (2, 50_000), (1500, 49)]


class TestRowSums:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_against_exact_sums(self, any_backend, device, shape, dtype):
        generator = torch.Generator().manual_seed(0)
        g, x = (torch.randn(shape, generator=generator, dtype=dtype).to(device) for _ in "gx")
        sums, dots = row_sums(g, x, backend=any_backend)
        assert sums.dtype == dots.dtype == dtype
        bound = 20 * torch.finfo(dtype).eps  # of the sum of absolute values: 256 / 16 additions in a lane, and the tree
        for row in range(0, shape[0], 97):
            a, b = g[row].double().tolist(), x[row].double().tolist()
            products = [p * q for p, q in zip(a, b, strict=True)]
            for got, terms in ((sums, a), (dots, products)):
                assert abs(got[row].item() - math.fsum(terms)) <= bound * math.fsum(map(abs, terms))

    def test_strided_and_empty(self, any_backend, device):
        g, x = torch.rand(6, 10, device=device), torch.rand(10, 6, device=device).t()
        for a, b in ((g, x), (g[:, ::3], x[:, ::3]), (g[:1].expand(6, 10), x)):
            torch.testing.assert_close(row_sums(a, b, backend=any_backend), (a.sum(1), (a * b).sum(1)))
        for shape in ((0, 4), (4, 0), (0, 0)):
            sums, dots = row_sums(*torch.zeros(2, *shape, device=device), backend=any_backend)
            assert torch.equal(sums.cpu(), torch.zeros(shape[0]))
            assert torch.equal(dots.cpu(), torch.zeros(shape[0]))

    def test_nan_and_inf_stay_in_their_row(self, any_backend, device):
        g, x = torch.rand(2, 5, 33, device=device)
        g[2, 7] = math.nan
        x[3, 1] = math.inf
        sums, dots = row_sums(g, x, backend=any_backend)
        assert sums.isfinite().tolist() == [True, True, False, True, True]
        assert dots.isfinite().tolist() == [True, True, False, False, True]


@pytest.mark.skipif(CPU_MODULE is None, reason="not built")
@pytest.mark.parametrize("shape", [(100, 1000), (20_000, 16)])
def test_threads_change_no_bit(shape):
    g, x = torch.randn(shape), torch.randn(shape)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = row_sums(g, x)
        torch.set_num_threads(2)
        two = row_sums(g, x)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.skipif(CPU_MODULE is None, reason="not built")
def test_overwrites_what_its_memory_held():
    g, x = torch.randn(9, 35), torch.randn(9, 35)
    out = torch.full((2, 9), math.nan)
    CPU_MODULE.row_sums_f32(out[0].data_ptr(), out[1].data_ptr(), g.data_ptr(), x.data_ptr(), *g.shape)
    assert torch.equal(out, torch.stack(row_sums(g, x)))


@pytest.mark.parametrize(
    ("g", "x", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"g of shape \(R, T\)"),
        (torch.zeros(3, 2).half(), torch.zeros(3, 2).half(), "float32 or float64"),
        (torch.zeros(3, 2), torch.zeros(2, 3), r"x of shape \(3, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), "in torch.float32"),
        (torch.zeros(3, 2), torch.zeros(3, 2, device="meta"), "on cpu"),
    ],
)
def test_bad_arguments(g, x, message):
    with pytest.raises(ValueError, match=message):
        row_sums(g, x)


def test_requires_grad():
    with pytest.raises(RuntimeError, match="no derivative"):
        row_sums(torch.zeros(3, 2), torch.zeros(3, 2, requires_grad=True))


def test_opcheck():
    torch.library.opcheck(torch.ops.pyengm.row_sums.default, (torch.rand(4, 7), torch.rand(4, 7)))
