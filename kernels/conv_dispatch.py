"""Runs the Triton kernels for convolutions where they can run; where they cannot, a warning says why, once."""

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyengm.kernels import HAS_TRITON
from pyengm.kernels.conv_shape import MAX_ELEMENTS, OPERANDS, ConvShape, Window

if HAS_TRITON:
    from pyengm.kernels.conv_direct_sqnorm import conv_direct_sqnorm, conv_gradients
    from pyengm.kernels.conv_gram_sqnorm import conv_gram_sqnorm

MIN_CAPABILITY = (8, 0)  # tensor cores for bfloat16 and tf32

T = TypeVar("T")

_failed: dict[tuple[ConvShape, int], str] = {}  # by the shape of an example and the size of the batch
_warned: set[str] = set()


def supports(x: Tensor, g: Tensor, window: Window) -> bool:
    """Whether the kernels can run on these operands, which are on a GPU; x (n, C, H, W), g (n, O, Ho, Wo)."""
    reason = _obstacle(x, ConvShape.of(x, g, *window))
    if reason is not None:
        _warn_once(reason)
    return reason is None


def direct(x: Tensor, g: Tensor, window: Window, **options: Any) -> Tensor | None:
    """`conv_direct_sqnorm`, or None where it cannot run."""
    return _attempt(lambda: conv_direct_sqnorm(x, g, window, **options), x, g, window)


def gradients(x: Tensor, g: Tensor, window: Window) -> tuple[Tensor, Tensor] | None:
    """`conv_gradients`, or None where it cannot run."""
    return _attempt(lambda: conv_gradients(x, g, window), x, g, window)


def gram(x: Tensor, g: Tensor, window: Window) -> Tensor | None:
    """`conv_gram_sqnorm`, or None where it cannot run."""
    return _attempt(lambda: conv_gram_sqnorm(x, g, window), x, g, window)


def _attempt(kernel: Callable[[], T], x: Tensor, g: Tensor, window: Window) -> T | None:
    """What failed is not tried again: there is no C compiler for Triton's launcher, or one launch cannot do the batch.

    A batch of another size is, because one that is too large says nothing about the next.
    """
    if not supports(x, g, window):
        return None
    try:
        return kernel()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _failed[ConvShape.of(x, g, *window), len(x)] = reason
        _warn_once(reason)
        return None


def _obstacle(x: Tensor, shape: ConvShape) -> str | None:
    if not HAS_TRITON:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(x.device) < MIN_CAPABILITY:
        least = ".".join(map(str, MIN_CAPABILITY))
        return f"{torch.cuda.get_device_name(x.device)} is older than compute capability {least}"
    if x.dtype not in OPERANDS:
        return f"they do not support {x.dtype}"
    if max(math.prod(shape.x), math.prod(shape.g), shape.offsets * shape.x[0] * shape.g[0]) >= MAX_ELEMENTS:
        return f"an example of {MAX_ELEMENTS} elements or more is too large for them"
    return _failed.get((shape, len(x)))


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"pyengm's Triton kernels do not run: {reason}. Plain PyTorch runs in their place: correct, but slower",
            stacklevel=2,
        )
