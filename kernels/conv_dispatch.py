"""Runs the Triton kernels for convolutions where they can run, and says once why where they cannot."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyengm.kernels import HAS_TRITON
from pyengm.kernels.conv_shape import OPERANDS, ConvShape, Window

if HAS_TRITON:
    from pyengm.kernels.conv_direct_sqnorm import conv_direct_sqnorm
    from pyengm.kernels.conv_gram_sqnorm import conv_gram_sqnorm

OLDEST = (8, 0)  # compute capability: tensor cores for bfloat16 and tf32
LARGEST = 2**31  # the kernels count the numbers of one example in 32 bits

_failed: dict[ConvShape, str] = {}
_said: set[str] = set()


def serves(x: Tensor, g: Tensor, window: Window) -> bool:
    """Whether the kernels take these operands, on a GPU; x (n, C, H, W), g (n, O, Ho, Wo)."""
    reason = _obstacle(x, ConvShape.of(x, g, *window))
    if reason is not None:
        _say_once(reason)
    return reason is None


def direct(x: Tensor, g: Tensor, window: Window, **options: Any) -> tuple[Tensor, Tensor | None] | None:
    """`conv_direct_sqnorm`, or None where that cannot run."""
    return _attempt(lambda: conv_direct_sqnorm(x, g, window, **options), x, g, window)


def gram(x: Tensor, g: Tensor, window: Window) -> Tensor | None:
    """`conv_gram_sqnorm`, or None where that cannot run."""
    return _attempt(lambda: conv_gram_sqnorm(x, g, window), x, g, window)


def _attempt(kernel: Callable[[], Any], x: Tensor, g: Tensor, window: Window) -> Any:
    """What fails once for a shape is not tried again: no C compiler for Triton's launcher, no room on this GPU."""
    if not serves(x, g, window):
        return None
    try:
        return kernel()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _failed[ConvShape.of(x, g, *window)] = reason
        _say_once(reason)
        return None


def _obstacle(x: Tensor, shape: ConvShape) -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(x.device) < OLDEST:
        return f"{torch.cuda.get_device_name(x.device)} is older than compute capability {OLDEST[0]}.{OLDEST[1]}"
    if x.dtype not in OPERANDS:
        return f"they do not take {x.dtype}"
    if max(math.prod(shape.x), math.prod(shape.g), shape.offsets * shape.x[0] * shape.g[0]) >= LARGEST:
        return f"an example of {LARGEST} numbers or more is too large for them"
    return _failed.get(shape)


def _say_once(reason: str) -> None:
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"pyengm's Triton kernels do not run: {reason}. Plain PyTorch runs in their place: right, but slower",
            stacklevel=2,
        )
