"""Squared norms of the per-example weight gradients of a convolution, by Gram matrices or from the gradients."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import SUFFIX, Op, fail, require_no_grad


def _check(op, x, g, kernel, stride, padding, dilation) -> None:
    if x.dtype not in SUFFIX or x.dim() != 4 or 0 in x.shape[1:]:
        fail(op, "x of shape (n, C, H, W) in float32 or float64", (tuple(x.shape), x.dtype))
    for name, pair, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2 or min(pair) < least:
            fail(op, f"two numbers of at least {least} as {name}", tuple(pair))
    window = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    size = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in window]
    if g.dim() != 4 or g.shape[0] != x.shape[0] or 0 in g.shape[1:] or list(g.shape[2:]) != size:
        fail(op, f"g of shape ({x.shape[0]}, O, {size[0]}, {size[1]})", tuple(g.shape))
    if g.dtype != x.dtype or g.device != x.device:
        fail(op, f"g in {x.dtype} on {x.device}", (g.dtype, g.device))
    require_no_grad(op, x, g)


def _run(call: Callable, kernel_name: str, outputs: Sequence[int], x: Tensor, g: Tensor, *window: list[int]) -> None:
    if x.shape[0]:
        layouts = ([*t.shape, *t.stride()] for t in (x, g))
        numbers = [number for pair in window for number in pair]
        call(f"{kernel_name}_{SUFFIX[x.dtype]}", *outputs, x.data_ptr(), g.data_ptr(), *layouts, numbers)


def _gram(call, x, g, *window) -> Tensor:
    if x.is_cuda:
        return reference.conv_gram_sqnorm(x, g, *window)
    out = x.new_empty(x.shape[0])
    _run(call, "conv_gram_sqnorm", [out.data_ptr()], x, g, *window)
    return out


def _direct(call, x, g, *window) -> Tensor:
    if x.is_cuda:
        return reference.conv_direct_sqnorm(x, g, *window)
    out = x.new_empty(x.shape[0])
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), 0], x, g, *window)
    return out


def _gradients(call, x, g, *window) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        return reference.conv_gradients(x, g, *window)
    out, gradients = _empty_gradients(x, g, *window)
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), gradients.data_ptr()], x, g, *window)
    return out, gradients


def _empty_sqnorm(x, g, *window) -> Tensor:
    return x.new_empty(x.shape[0])


def _empty_gradients(x, g, kernel, *rest) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], g.shape[1], x.shape[1], *kernel)


def _op(name: str, returns: str, **how: Callable) -> Op:
    window = "int[2] kernel, int[2] stride, int[2] padding, int[2] dilation"
    schema = f"{name}(Tensor x, Tensor g, {window}) -> {returns}"
    return Op(schema, check=partial(_check, name), reference=getattr(reference, name), **how)


_gram_op = _op("conv_gram_sqnorm", "Tensor", fake=_empty_sqnorm, native=_gram)
_direct_op = _op("conv_direct_sqnorm", "Tensor", fake=_empty_sqnorm, native=_direct)
_gradients_op = _op("conv_gradients", "(Tensor, Tensor)", fake=_empty_gradients, native=_gradients)


def conv_gram_sqnorm(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    backend: str | None = None,
) -> Tensor:
    """Squared norms (n,) of the per-example weight gradients of a Conv2d without groups, by Gram matrices.

    x: input (n, C, H, W), float32 or float64; g: gradient of the output (n, O, Ho, Wo), in x's dtype. Any strides.
    kernel, stride, padding (with zeros), dilation: two numbers each, as of Conv2d.
    Takes about (Ho Wo)^2 (C + O) / 2 multiplications an example, the direct form kh kw C O Ho Wo. Stores neither
    gradients nor Gram matrices. Products are summed in the dtype of x, the norm in float64.
    backend: None (by device), "reference", "cpu" or "cuda" (the reference).
    Returns (n,) in the dtype of x.
    """
    return _gram_op(x, g, list(kernel), list(stride), list(padding), list(dilation), backend=backend)


def conv_direct_sqnorm(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    backend: str | None = None,
) -> Tensor:
    """What conv_gram_sqnorm returns, from the gradients themselves: the cheaper form for large images, few channels."""
    return _direct_op(x, g, list(kernel), list(stride), list(padding), list(dilation), backend=backend)


def conv_gradients(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(conv_direct_sqnorm, the per-example weight gradients (n, O, C, kh, kw) that it squared), in the dtype of x."""
    return _gradients_op(x, g, list(kernel), list(stride), list(padding), list(dilation), backend=backend)
