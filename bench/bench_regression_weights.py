"""A-ENGM's line and weights in one op against eager PyTorch: pytest bench/bench_regression_weights.py."""

import pytest
import torch
from torch import Tensor

from pyengm.ops import regression_weights

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def eager(x: Tensor, y: Tensor | None, gammas: Tensor) -> tuple[Tensor, Tensor]:
    if y is not None:
        a, b = x.double(), y.double()
        centred = a - a.mean()
        slope = (centred @ b) / (centred @ centred)
        gammas = torch.lerp(torch.stack([b.mean() - slope * a.mean(), slope]), gammas, 0.7)
    return torch.div(5.0, (gammas[1] * x + gammas[0]).clamp_(min=1e-30)).clamp_(max=1.0).to(x.dtype), gammas


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fit", [True, False], ids=["with the fit", "weights alone"])
@pytest.mark.parametrize("n", [128, 4096])
def test_regression_weights(compare, n, fit, device):
    x = torch.rand(n, device=device) + 0.1
    y = 3 * x + torch.rand(n, device=device) if fit else None
    gammas = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(regression_weights(x, y, gammas, 5.0), eager(x, y, gammas), rtol=1e-6, atol=1e-9)
    compare(lambda: regression_weights(x, y, gammas, 5.0), {"eager": lambda: eager(x, y, gammas)}, rounds=1000)
