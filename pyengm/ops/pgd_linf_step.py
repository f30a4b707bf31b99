"""One PGD step in the L-infinity ball, in place: one read of three tensors, one write."""

import math

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import SUFFIX, Op, fail, require_no_grad

NAME = "pgd_linf_step_"


def _check(x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
    if x_adv.dtype not in SUFFIX:
        fail(NAME, "x_adv in float32 or float64", x_adv.dtype)
    if x_adv.dim() == 0 or not _is_dense(x_adv):
        fail(NAME, "x_adv of shape (n, ...), contiguous or channels_last", (tuple(x_adv.shape), x_adv.stride()))
    for name, t in (("grad", grad), ("x", x)):
        _check_like(name, t, x_adv.shape, x_adv.dtype, x_adv.device)
    if steps is not None:
        _check_like("step", steps, x_adv.shape[:1], x_adv.dtype, x_adv.device)
    if mask is not None:
        _check_like("mask", mask, x_adv.shape[:1], torch.bool, x_adv.device)
    if not math.isfinite(step):
        fail(NAME, "a finite step", step)
    if not eps >= 0:
        fail(NAME, "eps >= 0", eps)
    if not lo <= hi:
        fail(NAME, "lo <= hi", (lo, hi))
    require_no_grad(NAME, x_adv, grad, x, steps)


def _check_like(name: str, t: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    if t.shape != shape or t.dtype != dtype or t.device != device:
        fail(
            NAME,
            f"{name} of shape {tuple(shape)} in {dtype} on {device}",
            (tuple(t.shape), t.dtype, t.device),
        )


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def _in_layout_of(t: Tensor, x_adv: Tensor) -> Tensor:
    return t if t.stride() == x_adv.stride() else torch.empty_like(x_adv).copy_(t)


def _overlaps(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def _native(call, x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
    if x_adv.numel() == 0:
        return
    grad, x = _in_layout_of(grad, x_adv), _in_layout_of(x, x_adv)
    for name, t in (("grad", grad), ("x", x)):
        if _overlaps(x_adv, t):
            fail(NAME, f"x_adv and {name} in separate memory", "overlapping tensors")
    steps = steps if steps is None else steps.contiguous()
    mask = mask if mask is None else mask.contiguous()
    n = x_adv.shape[0]
    call(
        f"pgd_linf_step_{SUFFIX[x_adv.dtype]}",
        *(x_adv.data_ptr(), grad.data_ptr(), x.data_ptr(), n, x_adv.numel() // n, step, eps, lo, hi),
        *(0 if steps is None else steps.data_ptr(), 0 if mask is None else mask.data_ptr()),
    )
    if not x_adv.is_inference():
        torch.autograd.graph.increment_version(x_adv)


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

    x_adv, grad, x: (n, ...) float32 or float64, x_adv contiguous or channels_last; sign(0) = sign(nan) = 0.
    step: a number, or one per example, (n,) in x_adv's dtype. eps, step, lo, hi are in the units of x.
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
