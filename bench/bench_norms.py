"""A whole ENGM step against the plain step and against one backward pass per example: pytest bench/bench_norms.py.

The ratio is that of the other step to ENGM's: below 1 for the plain step, whose price ENGM should come close to.
"""

import pytest
import torch
from torch.nn import functional as F

from pyengm.models import build
from pyengm.ops import clip_weights
from pyengm.pergrad import exact_norms, walk_norms

ALPHA = 1.0
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [32, 64])
def test_step_of_resnet18_with_group_norm(compare, width, device):
    torch.manual_seed(0)
    n = 32
    model = build("resnet18", norm="gn", width=width).to(device)
    params = list(model.parameters())
    x, y = torch.rand(n, 3, 32, 32, device=device), torch.arange(n, device=device) % 10

    def losses():
        return F.cross_entropy(model(x), y, reduction="none")

    def plain():
        torch.autograd.grad(losses().mean(), params)

    def clipped(norms):
        of = losses()
        torch.autograd.grad((of * clip_weights(norms(of, params), ALPHA)).mean(), params)

    of = losses()
    torch.testing.assert_close(walk_norms(of, params), exact_norms(of, params), rtol=1e-4, atol=0)
    baselines = {"plain step": plain}
    if width == 32:
        baselines["one backward pass per example"] = lambda: clipped(exact_norms)
    compare(lambda: clipped(walk_norms), baselines, rounds=7)
