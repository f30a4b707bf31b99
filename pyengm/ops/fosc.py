"""The first-order stationary condition of an attack, alone or with the step that it decides on."""

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
    in_layout_of,
    new_numbers,
    row_size,
)
from pyengm.ops._register import STORAGE_SUFFIX, Op, fail, require_no_grad

NORMS = ("linf", "l2")


def _check(x_adv, grad, x, eps, l2) -> None:
    check_examples("fosc", "x_adv", x_adv)
    check_same("fosc", x_adv, grad=grad, x=x)
    _check_eps("fosc", eps)
    require_no_grad("fosc", x_adv, grad, x)


def _check_step(x_adv, grad, x, active, step, eps, threshold, lo, hi) -> None:
    name = "fosc_step_"
    check_dense(name, "x_adv", x_adv)
    check_same(name, x_adv, grad=grad, x=x)
    check_per_example(name, x_adv, torch.bool, active=active)
    if not active.is_contiguous():
        fail(name, "active in contiguous memory", active.stride())
    if not math.isfinite(step):
        fail(name, "a finite step", step)
    _check_eps(name, eps)
    if math.isnan(threshold):
        fail(name, "a number as threshold", threshold)
    if not lo <= hi:
        fail(name, "lo <= hi", (lo, hi))
    require_no_grad(name, x_adv, grad, x)


def _check_eps(name: str, eps: float) -> None:
    if not 0 <= eps < math.inf:
        fail(name, "a finite eps >= 0", eps)


def _native(call, x_adv, grad, x, eps, l2) -> Tensor:
    if x_adv.numel() == 0:
        return new_numbers(x_adv).zero_()
    x_adv = dense(x_adv)
    grad, x, out = in_layout_of(grad, x_adv), in_layout_of(x, x_adv), new_numbers(x_adv)
    addresses = (t.data_ptr() for t in (out, x_adv, grad, x))
    shape = len(x_adv), row_size(x_adv)
    call(f"fosc_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, eps, l2, rows=shape)
    return out


def _native_step(call, x_adv, grad, x, active, step, eps, threshold, lo, hi) -> Tensor:
    if x_adv.numel() == 0:
        return reference.fosc_step_(x_adv, grad, x, active, step, eps, threshold, lo, hi)
    grad, x, out = in_layout_of(grad, x_adv), in_layout_of(x, x_adv), new_numbers(x_adv)
    check_separate("fosc_step_", {"x_adv": x_adv, "active": active}, {"grad": grad, "x": x})
    addresses = (t.data_ptr() for t in (out, x_adv, grad, x, active))
    shape = len(x_adv), row_size(x_adv)
    call(f"fosc_step_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, step, eps, threshold, lo, hi, rows=shape)
    bump_version(x_adv, active)
    return out


_fosc = Op(
    "fosc(Tensor x_adv, Tensor grad, Tensor x, float eps, bool l2) -> Tensor",
    check=_check,
    fake=lambda x_adv, *rest: new_numbers(x_adv),
    reference=reference.fosc,
    native=_native,
)

_step = Op(
    "fosc_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor(b!) active, float step, float eps, float threshold, "
    "float lo, float hi) -> Tensor",
    check=_check_step,
    fake=lambda x_adv, *rest: new_numbers(x_adv),
    reference=reference.fosc_step_,
    native=_native_step,
)


def fosc(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, *, norm: str = "linf", backend: str | None = None
) -> Tensor:
    """First-order stationary condition (n,): the largest <v - x_adv, grad> over all v within eps of x.

    c = eps |grad|_1 - <x_adv - x, grad> in the L-infinity ball and eps |grad|_2 - <x_adv - x, grad> in the L2 ball:
    at least 0 for x_adv in the ball, and 0 where a linear loss is at its largest. It does not know of a pixel range.
    x_adv, grad, x: (n, ...) float32, float64, bfloat16 or float16, any strides; sums are in float64, nan and inf pass.
    eps: the radius, in the units of x, finite. norm: "linf" or "l2", of the ball.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns (n,) in the dtype of x_adv, float32 for the 16-bit ones. Raises ValueError on shapes, types, devices or
    numbers that do not fit, RuntimeError when a tensor requires grad outside torch.no_grad(). Source: Wang et al.
    2019, Eq. 5 and 6.
    """
    if norm not in NORMS:
        fail("fosc", f"a norm out of {', '.join(NORMS)}", repr(norm))
    return _fosc(x_adv, grad, x, eps, norm == "l2", backend=backend)


def fosc_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    active: Tensor,
    step: float,
    eps: float,
    threshold: float,
    *,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Retires the active examples whose FOSC is at most the threshold and moves the other active ones, in place.

    x_adv, active: changed in place; (n, ...) in a dtype of `fosc`, contiguous or channels_last, and (n,) bool. grad, x:
    as x_adv, any strides. Where active: if fosc(x_adv, grad, x, eps) <= threshold then active <- False, else x_adv
    takes a `pgd_linf_step_`. Other examples stay. The condition is compared as it is returned, in that dtype; where
    it is nan the example stays active, and sign(nan) = 0 keeps it where it is.
    step, eps, lo, hi: in the units of x; threshold: in those of the loss, inf allowed.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns the condition (n,) of all examples before the step, as `fosc` does. Raises ValueError on shapes, types,
    devices or numbers that do not fit, RuntimeError when a tensor requires grad outside torch.no_grad(). Source: Wang
    et al. 2019, Alg. 1.
    """
    return _step(x_adv, grad, x, active, step, eps, threshold, lo, hi, backend=backend)
