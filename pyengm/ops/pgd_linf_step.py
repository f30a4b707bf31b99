"""One PGD step in the L-infinity ball, in place: one read of three tensors, one write."""

import math

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._layout import (
    address,
    bump_version,
    check_dense,
    check_per_example,
    check_same,
    check_separate,
    in_layout_of,
    row_size,
)
from pyengm.ops._register import STORAGE_SUFFIX, Op, fail, require_no_grad

NAME = "pgd_linf_step_"


def _check(x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
    check_dense(NAME, "x_adv", x_adv)
    check_same(NAME, x_adv, grad=grad, x=x)
    check_per_example(NAME, x_adv, step=steps)
    check_per_example(NAME, x_adv, torch.bool, mask=mask)
    if not math.isfinite(step):
        fail(NAME, "a finite step", step)
    if not eps >= 0:
        fail(NAME, "eps >= 0", eps)
    if not lo <= hi:
        fail(NAME, "lo <= hi", (lo, hi))
    require_no_grad(NAME, x_adv, grad, x, steps)


def _native(call, x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
    if x_adv.numel() == 0:
        return
    grad, x = in_layout_of(grad, x_adv), in_layout_of(x, x_adv)
    check_separate(NAME, {"x_adv": x_adv}, {"grad": grad, "x": x})
    steps = steps if steps is None else steps.contiguous()
    mask = mask if mask is None else mask.contiguous()
    call(
        f"pgd_linf_step_{STORAGE_SUFFIX[x_adv.dtype]}",
        *(x_adv.data_ptr(), grad.data_ptr(), x.data_ptr(), x_adv.shape[0], row_size(x_adv), step, eps, lo, hi),
        *(address(steps), address(mask)),
    )
    bump_version(x_adv)


_op = Op(
    "pgd_linf_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, float step, float eps, float lo, float hi, "
    "Tensor? steps, Tensor? mask) -> ()",
    check=_check,
    fake=lambda *args: None,
    reference=reference.pgd_linf_step_,
    native=_native,
)


def pgd_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step: float | Tensor,
    eps: float,
    *,
    lo: float = 0.0,
    hi: float = 1.0,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x_adv <- clip(clip(x_adv + step * sign(grad), x - eps, x + eps), lo, hi), in place (Madry et al. 2018, Eq. 2.2).

    x_adv, grad, x: (n, ...) float32, float64, bfloat16 or float16, x_adv contiguous or channels_last; 16-bit numbers
    are widened to float32, and the result is rounded once. sign(0) = sign(nan) = 0.
    step: a number, or one per example, (n,) in x_adv's dtype, float32 for the 16-bit ones. eps, step, lo, hi are
    in the units of x.
    mask: (n,) bool; examples where it is False stay as they are.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns x_adv. Raises ValueError on shapes, types, devices or numbers that do not fit, RuntimeError when a
    tensor requires grad outside torch.no_grad().
    """
    if isinstance(step, Tensor):
        _op(x_adv, grad, x, 0.0, eps, lo, hi, step, mask, backend=backend)
    else:
        _op(x_adv, grad, x, step, eps, lo, hi, None, mask, backend=backend)
    return x_adv
