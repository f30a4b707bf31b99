"""Per-example conv gradient norms against pure torch and a batch weight gradient: pytest bench/bench_conv_sqnorm.py."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyengm.ops import conv_direct_sqnorm, conv_gradients, conv_gram_sqnorm

N = 32
# channels in and out, height, stride, kernel: the layers of a ResNet-18 for CIFAR of width 64, then of width 32
LAYERS = [
    *[(64, 64, 32, 1, 3), (128, 128, 16, 1, 3), (256, 256, 8, 1, 3), (512, 512, 4, 1, 3)],
    *[(64, 128, 32, 2, 3), (128, 256, 16, 2, 3), (256, 512, 8, 2, 3)],
    *[(64, 128, 32, 2, 1), (128, 256, 16, 2, 1), (256, 512, 8, 2, 1)],
    *[(3, 64, 32, 1, 3), (32, 32, 32, 1, 3), (64, 64, 16, 1, 3), (128, 128, 8, 1, 3), (256, 256, 4, 1, 3)],
]


def layer(c: int, o: int, height: int, stride: int, k: int) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    window = [[k, k], [stride, stride], [k // 2, k // 2], [1, 1]]
    x, g = torch.randn(N, c, height, height).relu(), torch.randn(N, o, height // stride, height // stride)
    return x, g, torch.empty(o, c, k, k), window


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: list[list[int]]) -> Tensor:
    _, stride, padding, dilation = window
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [False, True, False]
    )[1]


def loop_over_examples(x: Tensor, g: Tensor, weight: Tensor, window: list[list[int]]) -> Tensor:
    gradients = (weight_gradient(x[i : i + 1], g[i : i + 1], weight, window).view(-1) for i in range(N))
    return torch.stack([torch.dot(gradient, gradient) for gradient in gradients])


def torch_gram(x: Tensor, g: Tensor, window: list[list[int]]) -> Tensor:
    """The fastest form in torch: bmm for products of pixels, eight examples at a time, and sums of shifted products."""
    (k, _), (s, _), _, _ = window
    box = box_3x3 if (k, s) == (3, 1) else box_by_phases
    sqnorms = []
    for x_part, g_part in zip(x.split(8), g.split(8), strict=True):
        products = g_part.flatten(2).mT @ g_part.flatten(2)
        sqnorms.append(torch.linalg.vecdot(box(x_part, g_part, window).reshape(8, -1), products.view(8, -1)))
    return torch.cat(sqnorms)


def products_of_pixels(x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return (x.flatten(2).mT @ x.flatten(2)).view(n, h, w, h, w)


def box_3x3(x: Tensor, g: Tensor, window: list[list[int]]) -> Tensor:
    products = products_of_pixels(x)
    along_y = products.clone()
    along_y[:, 1:, :, 1:, :] += products[:, :-1, :, :-1, :]
    along_y[:, :-1, :, :-1, :] += products[:, 1:, :, 1:, :]
    both = along_y.clone()
    both[:, :, 1:, :, 1:] += along_y[:, :, :-1, :, :-1]
    both[:, :, :-1, :, :-1] += along_y[:, :, 1:, :, 1:]
    return both


def box_by_phases(x: Tensor, g: Tensor, window: list[list[int]]) -> Tensor:
    (k, _), (s, _), (p, _), _ = window
    x, (h, w) = pad(x, (p, p, p, p)), g.shape[2:]
    box = x.new_zeros(())
    for y_0, x_0 in itertools.product(range(min(s, k)), repeat=2):
        products = products_of_pixels(x[:, :, y_0::s, x_0::s])
        for i, j in itertools.product(range(len(range(y_0, k, s))), range(len(range(x_0, k, s)))):
            box = box + products[:, i : i + h, j : j + w, i : i + h, j : j + w]
    return box


@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: "{}-{}_{}px_s{}_k{}".format(*s))
@pytest.mark.parametrize("form", [conv_gram_sqnorm, conv_direct_sqnorm, conv_gradients], ids=lambda f: f.__name__)
def test_conv_sqnorm(compare, shape, form):
    x, g, weight, window = layer(*shape)
    expected = loop_over_examples(x, g, weight, window)
    baselines = {
        "loop over examples": lambda: loop_over_examples(x, g, weight, window),
        "batch weight gradient": lambda: weight_gradient(x, g, weight, window),
    }
    if form is conv_gram_sqnorm and g.shape[2] <= 16:
        torch.testing.assert_close(torch_gram(x, g, window), expected, rtol=1e-4, atol=0)
        baselines["torch gram"] = lambda: torch_gram(x, g, window)
    result = form(x, g, *window)
    torch.testing.assert_close(result[0] if form is conv_gradients else result, expected, rtol=1e-4, atol=0)
    compare(lambda: form(x, g, *window), baselines, rounds=20)
