"""ENGM's weights against eager PyTorch: pytest bench/bench_clip_weights.py."""

import pytest
import torch

from pyengm.ops import clip_weights

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [128, 4096])
def test_clip_weights(compare, n, device):
    norms = torch.rand(n, device=device) * 10

    def eager():
        return torch.div(5.0, norms).clamp_(max=1.0)

    torch.testing.assert_close(clip_weights(norms, 5.0), eager(), rtol=2**-22, atol=0)
    compare(lambda: clip_weights(norms, 5.0), {"eager": eager}, rounds=1000)
