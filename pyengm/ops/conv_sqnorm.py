"""Squared norms of the per-example weight gradients of a convolution, by Gram matrices or from the gradients.

On a GPU the kernels are written in Triton and need no nvcc; where they cannot run, a warning says why and the reference
runs.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from pyengm.kernels import conv_dispatch
from pyengm.kernels.conv_shape import HALF
from pyengm.ops import reference
from pyengm.ops._memory_format import computation_dtype
from pyengm.ops._register import LIBRARY, SUFFIX, Op, fail, require_no_grad


class ConvOp(Op):
    """An op with kernels for CUDA in every installation."""

    def __init__(self, schema: str, **how: Callable):
        super().__init__(schema, **how)
        if "cuda" not in self._kernels:
            self._kernels["cuda"] = self._run(lambda device: None)
            LIBRARY.impl(self.name, self._kernels["cuda"], "CUDA")


def _check(op, x, g, kernel, stride, padding, dilation) -> None:
    supported = x.dtype in SUFFIX or (x.device.type == "cuda" and x.dtype in HALF)
    if not supported or x.dim() != 4 or 0 in x.shape[1:]:
        types = "float32 or float64 (on CUDA bfloat16 or float16 too)"
        fail(op, f"x of shape (n, C, H, W) in {types}", (tuple(x.shape), x.dtype))
    for name, pair, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2 or min(pair) < least:
            fail(op, f"two integers of at least {least} as {name}", tuple(pair))
    window = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    size = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in window]
    if g.dim() != 4 or g.shape[0] != x.shape[0] or 0 in g.shape[1:] or list(g.shape[2:]) != size:
        fail(op, f"g of shape ({x.shape[0]}, O, {size[0]}, {size[1]})", tuple(g.shape))
    if g.dtype != x.dtype or g.device != x.device:
        fail(op, f"g in {x.dtype} on {x.device}", (g.dtype, g.device))
    require_no_grad(op, x, g)


def _reference(name: str) -> Callable:
    """The reference of that name, with 16-bit operands cast to float32 first."""
    plain = getattr(reference, name)
    return lambda x, g, *rest: plain(*(t.to(computation_dtype(t.dtype)) for t in (x, g)), *rest)


_gram_reference, _direct_reference = _reference("conv_gram_sqnorm"), _reference("conv_direct_sqnorm")
_gradients_reference = _reference("conv_gradients")


def _run(call: Callable, kernel_name: str, outputs: Sequence[int], x: Tensor, g: Tensor, *window: list[int]) -> None:
    if x.shape[0]:
        layouts = ([*t.shape, *t.stride()] for t in (x, g))
        flat_window = [size for pair in window for size in pair]
        call(f"{kernel_name}_{SUFFIX[x.dtype]}", *outputs, x.data_ptr(), g.data_ptr(), *layouts, flat_window)


def _gram(call, x, g, *window) -> Tensor:
    if x.is_cuda:
        found = conv_dispatch.gram(x, g, window)
        return _gram_reference(x, g, *window) if found is None else found
    out = x.new_empty(x.shape[0])
    _run(call, "conv_gram_sqnorm", [out.data_ptr()], x, g, *window)
    return out


def _direct(call, x, g, *window) -> Tensor:
    if x.is_cuda:
        found = conv_dispatch.direct(x, g, window)
        return _direct_reference(x, g, *window) if found is None else found
    out = x.new_empty(x.shape[0])
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), 0], x, g, *window)
    return out


def _gradients(call, x, g, *window) -> tuple[Tensor, Tensor]:
    if x.is_cuda and (found := conv_dispatch.gradients(x, g, window)) is not None:
        return found
    out, gradients = _empty_gradients(x, g, *window)
    if x.is_cuda:
        out, found = _gradients_reference(x, g, *window)
        return out, gradients.copy_(found)
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), gradients.data_ptr()], x, g, *window)
    return out, gradients


def _empty_sqnorm(x, *rest) -> Tensor:
    return x.new_empty(x.shape[0], dtype=computation_dtype(x.dtype))


def _empty_gradients(x, g, kernel, *rest) -> tuple[Tensor, Tensor]:
    n, o, c = x.shape[0], g.shape[1], x.shape[1]
    if x.device.type == "cuda":  # where channels are innermost
        gradients = x.new_empty(n, o, *kernel, c, dtype=computation_dtype(x.dtype)).permute(0, 1, 4, 2, 3)
    else:
        gradients = x.new_empty(n, o, c, *kernel)
    return _empty_sqnorm(x), gradients


WINDOW = "int[2] kernel, int[2] stride, int[2] padding, int[2] dilation"


def _op(name: str, returns: str, **how: Callable) -> ConvOp:
    return ConvOp(f"{name}(Tensor x, Tensor g, {WINDOW}) -> {returns}", check=partial(_check, name), **how)


_gram_op = _op("conv_gram_sqnorm", "Tensor", fake=_empty_sqnorm, reference=_gram_reference, native=_gram)
_direct_op = _op("conv_direct_sqnorm", "Tensor", fake=_empty_sqnorm, reference=_direct_reference, native=_direct)
_gradients_op = _op(
    "conv_gradients", "(Tensor, Tensor)", fake=_empty_gradients, reference=_gradients_reference, native=_gradients
)


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
    """Squared norms of the per-example weight gradients of a Conv2d without groups, by Gram matrices.

    This takes about (Ho Wo)^2 (C + O) / 2 multiplications per example, the direct form kh kw C O Ho Wo. Neither
    gradients nor Gram matrices are stored. Products are summed in the type of x, the norm in float64. On a GPU the
    kernels for float32 and 16 bits are written in Triton, read channels_last and sum the norm in float32.

    Args:
        x: input (n, C, H, W), float32 or float64, on a GPU also bfloat16 or float16; any strides.
        g: gradient in the output (n, O, Ho, Wo), in the type of x; any strides.
        kernel: height and width of the kernel.
        stride: as in Conv2d.
        padding: as in Conv2d, with zeros.
        dilation: as in Conv2d.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n,) in the type of x, float32 for 16-bit types.

    Raises:
        ValueError: a shape, type or device is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().
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
    """The result of `conv_gram_sqnorm` from the gradients themselves: cheaper for large images and few channels.

    Args:
        x: input (n, C, H, W), float32 or float64, on a GPU also bfloat16 or float16; any strides.
        g: gradient in the output (n, O, Ho, Wo), in the type of x; any strides.
        kernel: height and width of the kernel.
        stride: as in Conv2d.
        padding: as in Conv2d, with zeros.
        dilation: as in Conv2d.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n,) in the type of x, float32 for 16-bit types.

    Raises:
        ValueError: a shape, type or device is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().
    """
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
    """The result of `conv_direct_sqnorm`, and the per-example weight gradients themselves.

    Args:
        x: input (n, C, H, W), float32 or float64, on a GPU also bfloat16 or float16; any strides.
        g: gradient in the output (n, O, Ho, Wo), in the type of x; any strides.
        kernel: height and width of the kernel.
        stride: as in Conv2d.
        padding: as in Conv2d, with zeros.
        dilation: as in Conv2d.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        Squared norms (n,) and gradients (n, O, C, kh, kw), in the type of x, float32 for 16-bit types. On a GPU the
        memory format of the gradients is (n, O, kh, kw, C).

    Raises:
        ValueError: a shape, type or device is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().
    """
    return _gradients_op(x, g, list(kernel), list(stride), list(padding), list(dilation), backend=backend)
