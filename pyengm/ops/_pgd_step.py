"""What the PGD steps in L-infinity and in L2 share: schema, checks and the call of the kernel."""

import math

import torch

from pyengm.ops import reference
from pyengm.ops._memory_format import (
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


def pgd_step_op(name: str, *, sums_rows: bool) -> Op:
    """The op of that name. sums_rows: whether its kernel takes sums over whole examples, and memory for them."""

    def check(x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
        check_dense(name, "x_adv", x_adv)
        check_same(name, x_adv, grad=grad, x=x)
        check_per_example(name, x_adv, step=steps)
        check_per_example(name, x_adv, torch.bool, mask=mask)
        if not math.isfinite(step):
            fail(name, "a finite step", step)
        if not eps >= 0:
            fail(name, "eps >= 0", eps)
        if not lo <= hi:
            fail(name, "lo <= hi", (lo, hi))
        require_no_grad(name, x_adv, grad, x, steps)

    def native(call, x_adv, grad, x, step, eps, lo, hi, steps, mask) -> None:
        if x_adv.numel() == 0:
            return
        grad, x = in_layout_of(grad, x_adv), in_layout_of(x, x_adv)
        check_separate(name, {"x_adv": x_adv}, {"grad": grad, "x": x})
        steps = steps if steps is None else steps.contiguous()
        mask = mask if mask is None else mask.contiguous()
        n, d = x_adv.shape[0], row_size(x_adv)
        call(
            f"{name}{STORAGE_SUFFIX[x_adv.dtype]}",
            *(x_adv.data_ptr(), grad.data_ptr(), x.data_ptr(), n, d, step, eps, lo, hi),
            *(address(steps), address(mask)),
            **({"rows": (n, d)} if sums_rows else {}),
        )
        bump_version(x_adv)

    return Op(
        f"{name}(Tensor(a!) x_adv, Tensor grad, Tensor x, float step, float eps, float lo, float hi, "
        "Tensor? steps, Tensor? mask) -> ()",
        check=check,
        fake=lambda *args: None,
        reference=getattr(reference, name),
        native=native,
    )
