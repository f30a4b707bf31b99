"""The launch of a kernel, the same for all kernels."""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

MAX_PROGRAMS = 2**31 - 1


class LaunchConfig(NamedTuple):
    """A kernel on tensors, with its constants; the index of a program is example * tiles + tile.

    Args:
        kernel: a function under triton.jit.
        tiles: number of tiles of one example.
        constants: constexpr arguments by name.
        warps: warps of a program.
        stages: depth of the software pipeline.
    """

    kernel: Any
    tiles: int
    constants: dict[str, Any]
    warps: int
    stages: int


def launch(config: LaunchConfig, x: Tensor, *tensors: Tensor) -> None:
    """Runs the kernel on all examples.

    Args:
        config: the kernel and its constants.
        x: first tensor of the kernel, with one row per example.
        *tensors: the other tensors of the kernel.

    Raises:
        ValueError: there are more programs than one launch can have.
    """
    programs = len(x) * config.tiles
    if programs > MAX_PROGRAMS:
        raise ValueError(f"expected at most {MAX_PROGRAMS} tiles in one launch, got {programs}; use a smaller batch")
    if not programs:
        return
    interpreted = not isinstance(config.kernel, triton.JITFunction)
    widen = interpreted and x.dtype == torch.bfloat16  # the interpreter has no products of bfloat16
    options = {"num_warps": config.warps, "num_stages": config.stages}
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        config.kernel[(programs,)](x, *tensors, config.tiles, **config.constants, WIDEN=widen, **options)


def sum_of_tiles(out: Tensor) -> Tensor:
    """out (n, tiles) -> (n,), in an order that does not depend on the batch."""
    return out[:, 0] if out.shape[1] == 1 else out.sum(1)
