"""The part that the PGD steps in L-infinity and in L2 have in common: schema, checks and the call of the kernel."""

import math

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import (
    address,
    bump_version,
    check_dense,
    check_per_example,
    check_same,
    check_separate,
    row_size,
    with_strides_of,
)
from pyengm.ops._register import STORAGE_SUFFIX, Op, fail, require_no_grad


def pgd_step_op(name: str, *, sums_rows: bool) -> Op:
    """The op of that name. sums_rows: whether its kernel sums over examples, and needs a workspace on CUDA."""

    def check(x_adv, grad, x, step_size, eps, lo, hi, step_sizes, mask) -> None:
        check_dense(name, "x_adv", x_adv)
        check_same(name, x_adv, grad=grad, x=x)
        check_per_example(name, x_adv, step_size=step_sizes)
        check_per_example(name, x_adv, torch.bool, mask=mask)
        if not math.isfinite(step_size):
            fail(name, "a finite step_size", step_size)
        if not eps >= 0:
            fail(name, "eps >= 0", eps)
        if not lo <= hi:
            fail(name, "lo <= hi", (lo, hi))
        require_no_grad(name, x_adv, grad, x, step_sizes)

    def native(call, x_adv, grad, x, step_size, eps, lo, hi, step_sizes, mask) -> None:
        if x_adv.numel() == 0:
            return
        grad, x = with_strides_of(grad, x_adv), with_strides_of(x, x_adv)
        check_separate(name, {"x_adv": x_adv}, {"grad": grad, "x": x})
        step_sizes = step_sizes if step_sizes is None else step_sizes.contiguous()
        mask = mask if mask is None else mask.contiguous()
        n, d = x_adv.shape[0], row_size(x_adv)
        call(
            f"{name}{STORAGE_SUFFIX[x_adv.dtype]}",
            *(x_adv.data_ptr(), grad.data_ptr(), x.data_ptr(), n, d, step_size, eps, lo, hi),
            *(address(step_sizes), address(mask)),
            **({"rows": (n, d)} if sums_rows else {}),
        )
        bump_version(x_adv)

    return Op(
        f"{name}(Tensor(a!) x_adv, Tensor grad, Tensor x, float step_size, float eps, float lo, float hi, "
        "Tensor? step_sizes, Tensor? mask) -> ()",
        check=check,
        fake=lambda *args: None,
        reference=getattr(reference, name),
        native=native,
    )


def run_pgd_step(
    op: Op,
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: float | Tensor,
    eps: float,
    lo: float,
    hi: float,
    mask: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Calls an op of `pgd_step_op`, whose schema has separate arguments for one step size and for one per example."""
    one, per_example = (0.0, step_size) if isinstance(step_size, Tensor) else (step_size, None)
    op(x_adv, grad, x, one, eps, lo, hi, per_example, mask, backend=backend)
    return x_adv
