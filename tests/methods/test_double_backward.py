"""Second derivatives of convolutions and batch norms: those of torch, in fewer passes."""

import copy

import pytest
import torch
from torch import nn

from pyengm.methods.double_backward import fast_double_backward

CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no bias": {"kernel_size": 3, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "groups": {"kernel_size": (1, 3), "groups": 2},
    "dilated": {"kernel_size": 2, "dilation": (2, 1)},
}


def network(**convolution) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, **convolution),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.BatchNorm2d(5, eps=1e-3, momentum=0.3),
        nn.Softplus(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).double()
    model(torch.rand(2, 4, 8, 7, dtype=torch.float64))
    for p in model.parameters():
        nn.init.normal_(p, 0.5, 0.5)
    return model


def derivatives(model, x):
    """Of the input gradient's sines: gradients in all weights and in the image; the input gradient; the buffers."""
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(leaf).sin().sum(), leaf, create_graph=True)
    positions = torch.arange(g.numel(), dtype=g.dtype).view_as(g)
    second = torch.autograd.grad((g * positions.cos()).sin().sum(), [leaf, *model.parameters()], allow_unused=True)
    return [g.detach(), *(t for t in second if t is not None), *model.buffers()], [t is None for t in second]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torchs_own_numbers(name, layout):
    model = network(**CONVOLUTIONS[name]).to(memory_format=layout)
    x = torch.rand(5, 4, 8, 7, dtype=torch.float64).to(memory_format=layout)
    expected, missing = derivatives(copy.deepcopy(model), x)
    with fast_double_backward(model):
        assert sum("forward" in vars(module) for module in model) == 4
        found, absent = derivatives(model, x)
    assert absent == missing
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)  # a bias before a batch norm has no gradient
    assert not any("forward" in vars(module) for module in model)


def test_first_derivatives_in_the_weights():
    model, x = network(kernel_size=3), torch.rand(5, 4, 8, 7, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    with fast_double_backward(model):
        found = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["evaluation", "group norm", "own forward", "autocast", "same padding"])
def test_left_to_torch(kind):
    model, x = network(kernel_size=3), torch.rand(5, 4, 8, 7, dtype=torch.float64)
    if kind == "evaluation":
        model.eval()
    elif kind == "group norm":
        model[1], model[4] = nn.GroupNorm(2, 6).double(), nn.GroupNorm(5, 5).double()
    elif kind == "own forward":
        model[0].forward = lambda x: x[:, :1].expand(-1, 6, -1, -1)[:, :, 1:-1, 1:-1]
    elif kind == "same padding":
        model[0] = nn.Conv2d(4, 6, 3, padding="same").double()
        model = model[:3]
    else:
        model, x = model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), fast_double_backward(model):
        out = model(x)
        names = {type(node).__name__ for node in nodes(out.grad_fn)}
    assert ("_ConvBackward" in names) == (kind == "own forward")
    assert kind == "own forward" or "forward" not in vars(model[0])
    assert out.isfinite().all()


def nodes(node):
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.add(one)
            waiting += [following for following, _ in one.next_functions]
    return seen
