"""Squared norms of the per-example weight gradients of a convolution, by Gram matrices or from the gradients.

On a GPU the kernels are Triton's, which need no nvcc; where they cannot run, the reference does, after a message.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pyengm.kernels import conv_dispatch
from pyengm.kernels.conv_shape import HALF, ConvShape
from pyengm.kernels.conv_tuning import gram_is_cheaper
from pyengm.ops import reference
from pyengm.ops._register import LIBRARY, SUFFIX, Op, fail, require_no_grad


class ConvOp(Op):
    """Has kernels for CUDA in every installation."""

    def __init__(self, schema: str, **how: Callable):
        super().__init__(schema, **how)
        if "cuda" not in self._kernels:
            self._kernels["cuda"] = self._run(lambda device: None)
            LIBRARY.impl(self.name, self._kernels["cuda"], "CUDA")


def _check(op, x, g, kernel, stride, padding, dilation) -> None:
    served = x.dtype in SUFFIX or (x.device.type == "cuda" and x.dtype in HALF)
    if not served or x.dim() != 4 or 0 in x.shape[1:]:
        types = "float32 or float64 (on CUDA bfloat16 or float16 too)"
        fail(op, f"x of shape (n, C, H, W) in {types}", (tuple(x.shape), x.dtype))
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


def _check_corrected(op, x, g, sums, means, *window) -> None:
    _check(op, x, g, *window)
    ranks = sums.shape[1] if sums.dim() == 3 else 1
    shapes = {"sums": (x.shape[0], ranks, g.shape[1]), "means": (ranks, g.shape[1], x.shape[1], *window[0])}
    for (name, shape), t in zip(shapes.items(), (sums, means), strict=True):
        if t.shape != shape or t.dtype != _wide(x.dtype) or t.device != x.device:
            expected = f"{name} of shape {shape} in {_wide(x.dtype)} on {x.device}"
            fail(op, expected, (tuple(t.shape), t.dtype, t.device))
    require_no_grad(op, sums, means)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def _reference(name: str) -> Callable:
    """16-bit operands are float32 from the start."""
    plain = getattr(reference, name)
    return lambda x, g, *rest: plain(x.to(_wide(x.dtype)), g.to(_wide(g.dtype)), *rest)


_gram_reference, _direct_reference = _reference("conv_gram_sqnorm"), _reference("conv_direct_sqnorm")
_gradients_reference = _reference("conv_gradients")


def _corrected_reference(x, g, sums, means, *window) -> Tensor:
    return _corrected_squares(_gradients_reference(x, g, *window)[1], sums, means)


def _corrected_squares(gradients: Tensor, sums: Tensor, means: Tensor) -> Tensor:
    rest = gradients - torch.einsum("nro,rockl->nockl", sums, means)
    return rest.double().square().sum((1, 2, 3, 4)).to(rest.dtype)


def _run(call: Callable, kernel_name: str, outputs: Sequence[int], x: Tensor, g: Tensor, *window: list[int]) -> None:
    if x.shape[0]:
        layouts = ([*t.shape, *t.stride()] for t in (x, g))
        numbers = [number for pair in window for number in pair]
        call(f"{kernel_name}_{SUFFIX[x.dtype]}", *outputs, x.data_ptr(), g.data_ptr(), *layouts, numbers)


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
        return _direct_reference(x, g, *window) if found is None else found[0]
    out = x.new_empty(x.shape[0])
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), 0], x, g, *window)
    return out


def _gradients(call, x, g, *window) -> tuple[Tensor, Tensor]:
    if x.is_cuda and (found := conv_dispatch.direct(x, g, window, store=True)) is not None:
        return found
    out, gradients = _empty_gradients(x, g, *window)
    if x.is_cuda:
        out, found = _gradients_reference(x, g, *window)
        return out, gradients.copy_(found)
    _run(call, "conv_direct_sqnorm", [out.data_ptr(), gradients.data_ptr()], x, g, *window)
    return out, gradients


def _corrected(call, x, g, sums, means, *window) -> Tensor:
    if not x.is_cuda:
        return _corrected_squares(_gradients(call, x, g, *window)[1], sums, means)
    ranks = {"sums": sums.contiguous(), "means": means.permute(0, 1, 3, 4, 2).contiguous()}
    found = conv_dispatch.direct(x, g, window, **ranks)
    return _corrected_reference(x, g, sums, means, *window) if found is None else found[0]


def _empty_sqnorm(x, *rest) -> Tensor:
    return x.new_empty(x.shape[0], dtype=_wide(x.dtype))


def _empty_gradients(x, g, kernel, *rest) -> tuple[Tensor, Tensor]:
    n, o, c = x.shape[0], g.shape[1], x.shape[1]
    if x.device.type == "cuda":  # where channels are innermost
        gradients = x.new_empty(n, o, *kernel, c, dtype=_wide(x.dtype)).permute(0, 1, 4, 2, 3)
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
_corrected_op = ConvOp(
    f"conv_corrected_sqnorm(Tensor x, Tensor g, Tensor sums, Tensor means, {WINDOW}) -> Tensor",
    check=partial(_check_corrected, "conv_corrected_sqnorm"),
    fake=_empty_sqnorm,
    reference=_corrected_reference,
    native=_corrected,
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
    """Squared norms (n,) of the per-example weight gradients of a Conv2d without groups, by Gram matrices.

    x: input (n, C, H, W), float32 or float64; g: gradient of the output (n, O, Ho, Wo), in x's dtype. Any strides.
    On a GPU bfloat16 and float16 too; there the kernels for float32 and 16 bits are Triton's, and read channels_last.
    kernel, stride, padding (with zeros), dilation: two numbers each, as of Conv2d.
    Takes about (Ho Wo)^2 (C + O) / 2 multiplications an example, the direct form kh kw C O Ho Wo. Stores neither
    gradients nor Gram matrices. Products are summed in the dtype of x, the norm in float64 (on a GPU in float32).
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns (n,) in the dtype of x, for 16-bit operands in float32.
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
    """(conv_direct_sqnorm, the per-example weight gradients (n, O, C, kh, kw) that it squared), in the dtype of x.

    On a GPU the gradients are stored as (n, O, kh, kw, C).
    """
    return _gradients_op(x, g, list(kernel), list(stride), list(padding), list(dilation), backend=backend)


def conv_corrected_sqnorm(
    x: Tensor,
    g: Tensor,
    sums: Tensor,
    means: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    backend: str | None = None,
) -> Tensor:
    """conv_direct_sqnorm of the gradients less sum_r sums_ir means_r, what the statistics of batch norms take off.

    sums (n, R, O), means (R, O, C, kh, kw), in the dtype of the result; see `pyengm.pergrad.corrected`.
    """
    window = [list(pair) for pair in (kernel, stride, padding, dilation)]
    return _corrected_op(x, g, sums, means, *window, backend=backend)


def linear_sqnorm(a: Tensor, g: Tensor, *, backend: str | None = None) -> Tensor:
    """Squared norms (n,) of sum_t g_t a_t^T, for inputs a (n, T, I) and output gradients g (n, T, O) of a linear layer.

    A convolution of one offset, in the cheaper form on a GPU; types as of `conv_gram_sqnorm`.
    """
    x, g = (t.mT.unsqueeze(3) for t in (a, g))
    form = conv_gram_sqnorm if gram_is_cheaper(ConvShape.of(x, g, (1, 1))) else conv_direct_sqnorm
    return form(x, g, (1, 1), backend=backend)
