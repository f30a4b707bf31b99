"""What the launches of all kernels share."""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

MOST_PROGRAMS = 2**31 - 1


class Launch(NamedTuple):
    """A kernel of tensors, tiles and constants, whose programs are numbered example * tiles + tile."""

    kernel: Any
    tiles: int
    constants: dict[str, Any]
    warps: int
    stages: int


def launch(how: Launch, x: Tensor, *tensors: Tensor) -> None:
    programs = len(x) * how.tiles
    if programs > MOST_PROGRAMS:
        raise ValueError(f"{programs} tiles are more than the {MOST_PROGRAMS} that one launch takes")
    if not programs:
        return
    interpreted = not isinstance(how.kernel, triton.JITFunction)
    widen = interpreted and x.dtype == torch.bfloat16  # which the interpreter cannot multiply
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        how.kernel[(programs,)](
            x, *tensors, how.tiles, **how.constants, WIDEN=widen, num_warps=how.warps, num_stages=how.stages
        )


def sum_of_tiles(out: Tensor) -> Tensor:
    """out (n, tiles) -> (n,), in one order whatever the batch."""
    return out[:, 0] if out.shape[1] == 1 else out.sum(1)
