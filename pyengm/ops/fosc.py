"""The first-order stationary condition (FOSC) of an attack, alone or with the step that depends on it."""

import math

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import (
    bump_version,
    check_dense,
    check_examples,
    check_per_example,
    check_same,
    check_separate,
    dense,
    empty_per_example,
    row_size,
    with_strides_of,
)
from pyengm.ops._register import STORAGE_SUFFIX, Op, fail, require_no_grad

_BALLS = ("linf", "l2")


def _check(x_adv, grad, x, eps, l2) -> None:
    check_examples("fosc", "x_adv", x_adv)
    check_same("fosc", x_adv, grad=grad, x=x)
    _check_eps("fosc", eps)
    require_no_grad("fosc", x_adv, grad, x)


def _check_step(x_adv, grad, x, active, step_size, eps, threshold, lo, hi) -> None:
    name = "fosc_step_"
    check_dense(name, "x_adv", x_adv)
    check_same(name, x_adv, grad=grad, x=x)
    check_per_example(name, x_adv, torch.bool, active=active)
    if not active.is_contiguous():
        fail(name, "active in contiguous memory", active.stride())
    if not math.isfinite(step_size):
        fail(name, "a finite step_size", step_size)
    _check_eps(name, eps)
    if math.isnan(threshold):
        fail(name, "a threshold that is not nan", threshold)
    if not lo <= hi:
        fail(name, "lo <= hi", (lo, hi))
    require_no_grad(name, x_adv, grad, x)


def _check_eps(name: str, eps: float) -> None:
    if not 0 <= eps < math.inf:
        fail(name, "a finite eps >= 0", eps)


def _native(call, x_adv, grad, x, eps, l2) -> Tensor:
    if x_adv.numel() == 0:
        return empty_per_example(x_adv).zero_()
    x_adv = dense(x_adv)
    grad, x, out = with_strides_of(grad, x_adv), with_strides_of(x, x_adv), empty_per_example(x_adv)
    addresses = (t.data_ptr() for t in (out, x_adv, grad, x))
    shape = len(x_adv), row_size(x_adv)
    call(f"fosc_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, eps, l2, rows=shape)
    return out


def _native_step(call, x_adv, grad, x, active, step_size, eps, threshold, lo, hi) -> Tensor:
    if x_adv.numel() == 0:
        return reference.fosc_step_(x_adv, grad, x, active, step_size, eps, threshold, lo, hi)
    grad, x, out = with_strides_of(grad, x_adv), with_strides_of(x, x_adv), empty_per_example(x_adv)
    check_separate("fosc_step_", {"x_adv": x_adv, "active": active}, {"grad": grad, "x": x})
    addresses = (t.data_ptr() for t in (out, x_adv, grad, x, active))
    shape = len(x_adv), row_size(x_adv)
    call(f"fosc_step_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, step_size, eps, threshold, lo, hi, rows=shape)
    bump_version(x_adv, active)
    return out


_fosc = Op(
    "fosc(Tensor x_adv, Tensor grad, Tensor x, float eps, bool l2) -> Tensor",
    check=_check,
    fake=lambda x_adv, *rest: empty_per_example(x_adv),
    reference=reference.fosc,
    native=_native,
)

_step = Op(
    "fosc_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor(b!) active, float step_size, float eps, "
    "float threshold, float lo, float hi) -> Tensor",
    check=_check_step,
    fake=lambda x_adv, *rest: empty_per_example(x_adv),
    reference=reference.fosc_step_,
    native=_native_step,
)


def fosc(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, *, norm: str = "linf", backend: str | None = None
) -> Tensor:
    """First-order stationary condition: the largest <v - x_adv, grad> over all v within eps of x.

    c = eps |grad|_1 - <x_adv - x, grad> in the L-infinity ball and eps |grad|_2 - <x_adv - x, grad> in the L2 ball:
    at least 0 for x_adv in the ball, and 0 where a linear loss is largest. The range of pixels does not enter. Sums are
    in float64. On CUDA float32 and 16-bit types are summed in pairs of float32, four or eight elements at a time: an
    error of c below 2^-33 (eps |grad| + |x_adv - x|_2 |grad|_2), with the norm of c, before c is rounded to float32.
    nan and inf are kept.

    Args:
        x_adv: (n, ...), float32, float64, bfloat16 or float16, any strides.
        grad: gradient of the loss in x_adv; shape and type of x_adv, any strides.
        x: centre of the ball; shape and type of x_adv, any strides.
        eps: radius of the ball, in units of x, finite, at least 0.
        norm: "linf" or "l2", the norm of the ball.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n,) in units of the loss, in the type of x_adv, float32 for 16-bit types.

    Raises:
        ValueError: a shape, type, device or value is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().

    References:
        Wang et al. 2019, Eq. 5 and 6.
    """
    if norm not in _BALLS:
        fail("fosc", f"a norm out of {', '.join(_BALLS)}", repr(norm))
    return _fosc(x_adv, grad, x, eps, norm == "l2", backend=backend)


def fosc_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    active: Tensor,
    step_size: float,
    eps: float,
    threshold: float,
    *,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Deactivates examples whose FOSC is at most the threshold, and moves those that are still active; in place.

    For an active example: active <- False where fosc(x_adv, grad, x, eps) <= threshold, else x_adv takes a
    `pgd_linf_step_`. Other examples do not change. The condition is compared in the type in which it is returned. Where
    it is nan the example stays active, and does not move where the gradient is nan, as sign(nan) = 0.

    Args:
        x_adv: (n, ...), float32, float64, bfloat16 or float16, contiguous or channels_last; changed in place.
        grad: gradient of the loss in x_adv; shape and type of x_adv, any strides.
        x: centre of the ball; shape and type of x_adv, any strides.
        active: (n,) bool, contiguous; changed in place.
        step_size: in units of x.
        eps: radius of the ball, in units of x, finite, at least 0.
        threshold: in units of the loss; may be inf.
        lo: least value of a pixel, in units of x.
        hi: largest value of a pixel, in units of x.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        The condition (n,) of all examples before the step, as `fosc` returns it.

    Raises:
        ValueError: a shape, type, device or value is not as above, or tensors overlap.
        RuntimeError: a tensor requires grad outside torch.no_grad().

    References:
        Wang et al. 2019, Alg. 1.
    """
    return _step(x_adv, grad, x, active, step_size, eps, threshold, lo, hi, backend=backend)
