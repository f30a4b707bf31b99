"""The form that the cost model chooses for the norms of each convolution of a model, and its modelled time: Markdown.

    cd bench && python -m tools.conv_forms --model resnet18 --image-size 32

Times are modelled, not measured: multiply-adds of the tiles at the full rate of an H200 for bfloat16 on tensor cores,
989 Tflop/s, or reading both operands once at 4.8 TB/s where that takes longer (NVIDIA's data sheet of the H200; its
1,979 Tflop/s are with sparsity). So they compare forms, and no kernel is faster.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import pyengm
from pyengm.kernels.conv_cost_model import direct_tile, gram_tile
from pyengm.kernels.conv_shape import ConvShape
from pyengm.pergrad.per_example_grad import STORED

FLOPS, BYTES = 989e12, 4.8e12  # per second
N = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    options = parser.parse_args()
    layers: dict[ConvShape, int] = {}
    for shape in shapes(options.model, options.image_size):
        layers[shape] = layers.get(shape, 0) + 1
    print(f"{options.model}, {options.image_size}x{options.image_size} images, batch {N}, bfloat16; microseconds\n")
    print("| layers | channels | kernel, stride | output | batch weight gradient | direct | Gram | form | kept |")
    print("|--:|---|---|---|--:|--:|--:|---|---|")
    totals = [0.0, 0.0]
    for shape, number in layers.items():
        whole, direct, gram = (time_of(shape, cost) for cost in costs(shape))
        totals = [totals[0] + number * whole, totals[1] + number * min(direct, gram)]
        window = f"{shape.kernel[0]}x{shape.kernel[1]}, {shape.stride[0]}"
        cells = (number, f"{shape.x[0]} to {shape.g[0]}", window, f"{shape.g[1]}x{shape.g[2]}")
        times = (f"{us:.1f}" for us in (whole, direct, gram))
        kept = "gradients" if is_stored(shape) else "operands"
        print(f"| {' | '.join([*map(str, cells), *times, 'Gram' if gram < direct else 'direct', kept])} |")
    print(f"| all | | | | {totals[0]:.0f} | | | {totals[1]:.0f}, {totals[1] / totals[0]:.2f} weight gradients | |")


def shapes(name: str, size: int) -> list[ConvShape]:
    """The convolutions of a model in bfloat16, in the order in which they run."""
    model = pyengm.models.build(name, num_classes=10, in_channels=3, image_size=size, norm_layer="gn").to("meta")
    found = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        assert not isinstance(module.padding, str)
        window = module.kernel_size, module.stride, module.padding, module.dilation
        found.append(ConvShape.of(inputs[0].bfloat16(), output, *window))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    model(torch.empty(1, 3, size, size, device="meta"))
    return found


def costs(shape: ConvShape) -> tuple[float, float, float]:
    """Multiply-adds of one example: of its share of the batch's weight gradient, of the direct and the Gram form."""
    plain = shape.offsets * shape.x[0] * shape.g[0] * shape.positions
    return plain, direct_tile(shape).cost(shape), gram_tile(shape).cost(shape)


def time_of(shape: ConvShape, cost: float) -> float:
    """Microseconds of a batch."""
    read = 2 * (math.prod(shape.x) + math.prod(shape.g)) / BYTES  # two bytes a number
    return 1e6 * N * max(2 * cost / FLOPS, read)


def is_stored(shape: ConvShape) -> bool:
    """Whether a single pass keeps the per-example gradients, always in the direct form, for their weighted sum."""
    return shape.offsets * shape.x[0] * shape.g[0] <= STORED * (math.prod(shape.x) + math.prod(shape.g))


if __name__ == "__main__":
    main()
