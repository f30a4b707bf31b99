"""Counter-based random values against torch's generator: pytest bench/bench_philox.py."""

import pytest
import torch

from pyengm.ops import Purpose, philox_normal, philox_uniform

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("draw", [philox_uniform, philox_normal])
def test_philox(compare, draw, device):
    index = torch.arange(128, device=device)
    key = {"seed": 1, "purpose": Purpose.START}
    torch.testing.assert_close(
        draw(index, (3, 32, 32), **key), draw(index, (3, 32, 32), **key, backend="reference"), rtol=2**-23, atol=0
    )
    library = torch.rand if draw is philox_uniform else torch.randn
    compare(
        lambda: draw(index, (3, 32, 32), **key),
        {
            f"torch.{library.__name__}": lambda: library(128, 3, 32, 32, device=device),
            "reference": lambda: draw(index, (3, 32, 32), **key, backend="reference"),
        },
        rounds=50,
    )
