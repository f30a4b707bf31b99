"""The memory format that a model gets on a CPU, and gradients in it."""

import copy

import pytest
import torch
from torch import nn

from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.models.memory_format import overruns

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(2, 4, 1, stride=2), True),
        (nn.Conv2d(4, 4, 1, stride=(1, 2)), True),
        (nn.Conv2d(32, 32, 1, stride=2, groups=16), True),
        (nn.Conv2d(16, 32, 1, stride=2), False),
        (nn.Conv2d(2, 4, 1), False),
        (nn.Conv2d(2, 4, 3, stride=2), False),
        (nn.Linear(2, 4), False),
    ],
)
def test_layers_that_overrun(layer, expected):
    assert overruns(layer) == expected


def test_vectors_of_avx512_hold_16_numbers(monkeypatch):
    layer = nn.Conv2d(8, 16, 1, stride=2)
    for capability, expected in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert overruns(layer) == expected


@pytest.mark.parametrize("width", [2, 4, 16])
def test_narrow_networks_have_the_gradients_of_float64(width):
    """ResNets whose shortcuts have fewer channels than a vector register has numbers."""
    torch.manual_seed(0)
    exact = build("resnet18", norm_layer="gn", width=width).double()
    model = to_fast_memory_format(copy.deepcopy(exact).float(), CPU)
    assert memory_format_of(model) == (torch.channels_last if width == 16 else torch.contiguous_format)
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    fast = x.contiguous(memory_format=memory_format_of(model))
    nn.functional.cross_entropy(model(fast), y).backward()
    nn.functional.cross_entropy(exact(x.double()), y).backward()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-2 * q.grad.norm() + 1e-6  # of ReLUs near 0
