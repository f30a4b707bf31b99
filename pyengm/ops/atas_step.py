"""A step with a size of its own for every example, from a moving average of its gradient's squared length."""

import math

from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import (
    bump_version,
    check_dense,
    check_per_example,
    check_same,
    check_separate,
    in_layout_of,
    new_numbers,
    row_size,
)
from pyengm.ops._register import STORAGE_SUFFIX, Op, fail, require_no_grad

NAME = "atas_step_"


def _check(x_adv, grad, x, v, eps, step_scale, c, min_step, max_step, beta, lo, hi) -> None:
    check_dense(NAME, "x_adv", x_adv)
    check_same(NAME, x_adv, grad=grad, x=x)
    check_per_example(NAME, x_adv, v=v)
    if not v.is_contiguous():
        fail(NAME, "v in contiguous memory", v.stride())
    if not eps >= 0:
        fail(NAME, "eps >= 0", eps)
    for name, value in (("step_scale", step_scale), ("c", c)):
        if not 0 < value < math.inf:
            fail(NAME, f"a finite {name} > 0", value)
    if not 0 <= min_step <= max_step:
        fail(NAME, "0 <= min_step <= max_step", (min_step, max_step))
    if not 0 <= beta <= 1:
        fail(NAME, "beta between 0 and 1", beta)
    if not lo <= hi:
        fail(NAME, "lo <= hi", (lo, hi))
    require_no_grad(NAME, x_adv, grad, x, v)


def _native(call, x_adv, grad, x, v, eps, step_scale, c, min_step, max_step, beta, lo, hi) -> Tensor:
    if x_adv.numel() == 0:
        return reference.atas_step_(x_adv, grad, x, v, eps, step_scale, c, min_step, max_step, beta, lo, hi)
    grad, x, sizes = in_layout_of(grad, x_adv), in_layout_of(x, x_adv), new_numbers(x_adv)
    check_separate(NAME, {"x_adv": x_adv, "v": v}, {"grad": grad, "x": x})
    addresses = (t.data_ptr() for t in (sizes, x_adv, grad, x, v))
    shape, numbers = (len(x_adv), row_size(x_adv)), (eps, step_scale, c, min_step, max_step, beta, lo, hi)
    call(f"atas_step_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, *numbers, rows=shape)
    bump_version(x_adv, v)
    return sizes


_op = Op(
    "atas_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor(b!) v, float eps, float step_scale, float c, float min_step, "
    "float max_step, float beta, float lo, float hi) -> Tensor",
    check=_check,
    fake=lambda x_adv, *rest: new_numbers(x_adv),
    reference=reference.atas_step_,
    native=_native,
)


def atas_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    v: Tensor,
    *,
    eps: float,
    step_scale: float,
    c: float,
    min_step: float,
    max_step: float,
    beta: float = 0.5,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """x_adv <- clip(clip(x_adv + a sign(grad), x - eps, x + eps), lo, hi), a shrinking as gradients grow; in place.

    v <- beta v + (1 - beta) |grad|_2^2, then a = step_scale / (1 + sqrt(v) / c), kept between min_step and max_step, by example.
    x_adv, v: changed in place; (n, ...) float32, float64, bfloat16 or float16, contiguous or channels_last, and (n,) in
    its dtype, float32 for the 16-bit ones. grad, x: as x_adv, any strides. Where the new v would not be finite in that
    dtype, as for a gradient with a nan, v and x_adv stay and a comes from the old v.
    step_scale, min_step, max_step, eps, lo, hi: in the units of x; min_step may be 0 and max_step inf. c: in those of the gradient's norm.
    beta: the share of the old v, 0 to 1. sign(0) = 0.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns the step sizes a (n,) in the dtype of v. Raises ValueError on shapes, types, devices or numbers that do
    not fit, RuntimeError when a tensor requires grad outside torch.no_grad(). Source: Huang et al. 2022, Eq. 3 and 4.
    """
    return _op(x_adv, grad, x, v, eps, step_scale, c, min_step, max_step, beta, lo, hi, backend=backend)
