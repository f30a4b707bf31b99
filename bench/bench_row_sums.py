"""Sums of rows and of their products in one pass against two torch calls: pytest bench/bench_row_sums.py."""

import pytest
import torch

from pyengm.ops import row_sums


@pytest.mark.parametrize("shape", [(32 * 64, 1024), (32 * 128, 256), (32 * 256, 64), (32 * 512, 16)], ids=str)
def test_row_sums(compare, shape):
    g, x = torch.randn(shape), torch.randn(shape)

    def two_calls():
        return g.sum(1), torch.linalg.vecdot(g, x)

    torch.testing.assert_close(row_sums(g, x), two_calls(), rtol=1e-4, atol=1e-4)
    compare(lambda: row_sums(g, x), {"sum and vecdot": two_calls}, rounds=300)
