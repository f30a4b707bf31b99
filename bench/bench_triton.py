"""Per-example gradient norms on a GPU against cuDNN's weight gradient of the batch: pytest bench/bench_triton.py.

The layers are those of a ResNet-18 for CIFAR of width 64, 128 images. Every candidate is captured in a CUDA graph,
CALLS times in a row, so that a row holds the time of the GPU without the launches; its times are those of all calls.
`python -m pyengm.kernels.tune` can find tiles for this GPU before.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyengm.kernels import HAS_TRITON
from pyengm.kernels.conv_shape import ConvShape
from pyengm.kernels.conv_tuning import gram_is_cheaper
from pyengm.ops import conv_direct_sqnorm, conv_gradients, conv_gram_sqnorm, reference

if HAS_TRITON:
    from pyengm.kernels.tune import operands

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")]

N, CALLS, ROUNDS = 128, 20, 50
STAGES = [(64, 64, 32, 1, 3), (128, 128, 16, 1, 3), (256, 256, 8, 1, 3), (512, 512, 4, 1, 3)]
STRIDED = [(64, 128, 32, 2, 3), (128, 256, 16, 2, 3), (256, 512, 8, 2, 3)]
LAYERS = [(3, 64, 32, 1, 3), *STAGES, *STRIDED]
LAYER_NAME = "{}-{}_{}px_s{}_k{}".format

Layer = tuple[Tensor, Tensor, tuple]  # x, output gradient, (kernel, stride, padding, dilation)


def weight_gradient(x: Tensor, g: Tensor, window: tuple) -> Tensor:
    kernel, stride, padding, dilation = window
    weight = x.new_empty(g.shape[1], x.shape[1], *kernel).to(memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [False, True, False]
    )[1]


def norms(x: Tensor, g: Tensor, window: tuple) -> Tensor:
    form = conv_gram_sqnorm if gram_is_cheaper(ConvShape.of(x, g, *window)) else conv_direct_sqnorm
    return form(x, g, *window)


def captured(candidate: Callable[..., object], layers: list[Layer], tf32: bool = True) -> Callable[[], None]:
    """One replay runs the candidate on all layers, CALLS times."""
    with torch.backends.cudnn.flags(benchmark=True, allow_tf32=tf32):
        for layer in layers:
            candidate(*layer)  # compiles, and lets cuDNN choose
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                for layer in layers:
                    candidate(*layer)
    return graph.replay


def baselines(layers: list[Layer], dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    if dtype == torch.float32:
        return {
            "cuDNN's batch weight gradient, tf32": captured(weight_gradient, layers),
            "cuDNN's batch weight gradient, float32": captured(weight_gradient, layers, tf32=False),
        }
    return {"cuDNN's batch weight gradient": captured(weight_gradient, layers)}


def check(candidate: Callable[..., Tensor | tuple[Tensor, ...]], x: Tensor, g: Tensor, window: tuple) -> None:
    """Compares with the float64 reference; sums of up to 1024 products in float32 err by 2^-13, squares by 2^-12."""
    result = candidate(x, g, window)
    got = result[0] if isinstance(result, tuple) else result
    for i in range(0, N, 16):
        expected = reference.conv_direct_sqnorm(x[i : i + 16].double(), g[i : i + 16].double(), *window)
        torch.testing.assert_close(got[i : i + 16].double(), expected, rtol=2**-12, atol=0)


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])


@DTYPES
def test_four_stages(compare, dtype):
    """One layer of each stage, and the sum of the four."""
    layers = [operands(*stage, n=N, dtype=dtype) for stage in STAGES]
    for layer in layers:
        check(norms, *layer)
    compare(captured(norms, layers), baselines(layers, dtype), rounds=ROUNDS)


@DTYPES
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: LAYER_NAME(*layer))
@pytest.mark.parametrize("form", [conv_gram_sqnorm, conv_direct_sqnorm, conv_gradients], ids=lambda f: f.__name__)
def test_layer(compare, layer, form, dtype):
    """Each form alone; gradients only for layers whose gradients the single pass stores."""
    x, g, window = operands(*layer, n=N, dtype=dtype)
    if form is conv_gradients and layer not in LAYERS[:2]:
        pytest.skip("the single pass does not store these gradients")
    if form is conv_gram_sqnorm and layer[2] == 32:
        pytest.skip("this form is never used for a thousand pixels")

    def ours(x: Tensor, g: Tensor, window: tuple) -> Tensor | tuple[Tensor, ...]:
        return form(x, g, *window)

    check(ours, x, g, window)
    compare(captured(ours, [(x, g, window)]), baselines([(x, g, window)], dtype), rounds=ROUNDS)
