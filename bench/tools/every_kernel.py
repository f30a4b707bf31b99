"""Calls every native kernel of one device on small inputs, for checkers that make kernels a hundred times slower.

    cd bench && python -m tools.every_kernel DEVICE      # cuda or cpu

Rows are short, and so long that several blocks share one. Inputs come from the host by copies, and no kernel but ours
reads or writes device memory before ours have: a checker may then look at ours alone.
"""

import math
import sys

import torch
from torch import Tensor

from pyengm import ops
from pyengm.ops import Purpose

SHAPES = [(3, 40), (2, 33_000)]
STORAGE = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Outputs = dict[str, tuple[Tensor, ...]]


def row_ops(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Outputs:
    """The ops that read or change one row per example; each gets inputs of its own."""
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x_adv, grad, x = (torch.rand(shape, generator=generator).to(dtype).to(device) for _ in range(3))
        return x_adv, grad, x

    def given(value: float, kind: torch.dtype = real) -> Tensor:
        return torch.full(shape[:1], value, dtype=kind).to(device)

    still, v = given(True, torch.bool), given(1.0)
    return {
        "row_norms": (ops.row_norms(inputs()[0]),),
        "pgd_linf_step_": (
            ops.pgd_linf_step_(*inputs(), 0.03, 0.1),
            ops.pgd_linf_step_(*inputs(), given(0.03), 0.1, mask=given(True, torch.bool)),
        ),
        "pgd_l2_step_": (ops.pgd_l2_step_(*inputs(), given(0.5), 1.0, mask=given(True, torch.bool)),),
        "fosc": (ops.fosc(*inputs(), 0.1), ops.fosc(*inputs(), 0.1, norm="l2")),
        "fosc_step_": (ops.fosc_step_(*inputs(), still, 0.03, 0.1, -math.inf), still),
        "atas_step_": (ops.atas_step_(*inputs(), v, eps=0.1, step_scale=0.2, c=5.0, min_step=0.01, max_step=0.15), v),
    }


def sums_and_weights(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Outputs:
    g, x = (torch.rand(shape, dtype=dtype).to(device) for _ in "gx")
    norms, other = (torch.rand(300, dtype=dtype).to(device) for _ in range(2))
    line = torch.tensor([0.2, 1.5], dtype=torch.float64).to(device)
    return {
        "row_sums": ops.row_sums(g, x),
        "clip_weights": (ops.clip_weights(norms, 0.5),),
        "regression_statistics": (ops.regression_statistics(norms, other),),
        "regression_weights": ops.regression_weights(norms, other, line, 1.3),
    }


def images_and_random_values(device: str) -> Outputs:
    images = torch.randint(0, 256, (3, 3, 5, 8), dtype=torch.uint8).to(device)
    index = torch.tensor([2, 0]).to(device)
    corner, flip = torch.tensor([0, 2]).to(device), torch.tensor([True, False]).to(device)
    layouts = (False, True)
    key = {"seed": 1, "purpose": Purpose.START}
    return {
        "crop_flip": tuple(
            ops.crop_flip(images, corner, corner, flip, 1, positions=index, channels_last=last) for last in layouts
        ),
        "philox_uniform": (ops.philox_uniform(index, (3, 17), **key),),
        "philox_normal": (ops.philox_normal(index, (3, 16), **key),),
    }


def convolutions(dtype: torch.dtype, device: str) -> Outputs:
    x, g = (torch.randn(2, c, 6, 7).to(dtype).to(device) for c in (5, 9))
    window = ((3, 3), (1, 1), (1, 1), (1, 1))
    return {
        "conv_gram_sqnorm": (ops.conv_gram_sqnorm(x, g, *window),),
        "conv_direct_sqnorm": (ops.conv_direct_sqnorm(x, g, *window),),
        "conv_gradients": ops.conv_gradients(x, g, *window),
    }


def every_kernel(device: str) -> int:
    """Calls all of them, and returns the number of calls.

    Raises:
        FloatingPointError: an output has a value that is not finite.
    """
    runs = {f"{dtype} {shape}": row_ops(shape, dtype, device) for dtype in STORAGE for shape in SHAPES}
    runs |= {f"{dtype} {s}, sums": sums_and_weights(s, dtype, device) for dtype in STORAGE[:2] for s in SHAPES}
    runs["images"] = images_and_random_values(device)
    of_16_bits = STORAGE[2:] if device == "cuda" else []
    runs |= {f"{dtype}, convolutions": convolutions(dtype, device) for dtype in (torch.float32, *of_16_bits)}
    for where, outputs in runs.items():
        for name, tensors in outputs.items():
            if not all(t.cpu().isfinite().all() for t in tensors):
                raise FloatingPointError(f"{name} of {where} on {device}: expected finite values")
    return sum(map(len, runs.values()))


if __name__ == "__main__":
    (device,) = sys.argv[1:]
    print(f"{every_kernel(device)} ops ran on {device}")
