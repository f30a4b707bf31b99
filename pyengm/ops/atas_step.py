"""A step whose size, for each example, follows from a moving average of the squared norm of its gradient."""

import math

from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import (
    bump_version,
    check_dense,
    check_per_example,
    check_same,
    check_separate,
    empty_per_example,
    row_size,
    with_strides_of,
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
    grad, x, sizes = with_strides_of(grad, x_adv), with_strides_of(x, x_adv), empty_per_example(x_adv)
    check_separate(NAME, {"x_adv": x_adv, "v": v}, {"grad": grad, "x": x})
    addresses = (t.data_ptr() for t in (sizes, x_adv, grad, x, v))
    shape, scalars = (len(x_adv), row_size(x_adv)), (eps, step_scale, c, min_step, max_step, beta, lo, hi)
    call(f"atas_step_{STORAGE_SUFFIX[x_adv.dtype]}", *addresses, *shape, *scalars, rows=shape)
    bump_version(x_adv, v)
    return sizes


_op = Op(
    "atas_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor(b!) v, float eps, float step_scale, float c, "
    "float min_step, float max_step, float beta, float lo, float hi) -> Tensor",
    check=_check,
    fake=lambda x_adv, *rest: empty_per_example(x_adv),
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
    """x_adv <- clip(clip(x_adv + a sign(grad), x - eps, x + eps), lo, hi), in place; a is smaller for large gradients.

    v <- beta v + (1 - beta) |grad|_2^2, then a = clip(step_scale / (1 + sqrt(v) / c), min_step, max_step), by example.
    Where the new v would not be finite in its type, as for a gradient with a nan, v and x_adv do not change and a
    follows from the old v. sign(0) = 0.

    Args:
        x_adv: (n, ...), float32, float64, bfloat16 or float16, contiguous or channels_last; changed in place.
        grad: gradient of the loss in x_adv; shape and type of x_adv, any strides.
        x: centre of the ball; shape and type of x_adv, any strides.
        v: (n,), moving averages of squared gradient norms, in the type of x_adv, float32 for 16-bit types, contiguous;
            changed in place.
        eps: radius of the ball, in units of x, at least 0.
        step_scale: step size at a gradient of norm 0, in units of x, > 0.
        c: gradient norm at which the step size is halved, in units of that norm, > 0.
        min_step: least step size, in units of x; may be 0.
        max_step: largest step size, in units of x; may be inf.
        beta: share of the old v in the new one, 0 to 1.
        lo: least value of a pixel, in units of x.
        hi: largest value of a pixel, in units of x.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        The step sizes a, (n,), in the type of v.

    Raises:
        ValueError: a shape, type, device or value is not as above, or tensors overlap.
        RuntimeError: a tensor requires grad outside torch.no_grad().

    References:
        Huang et al. 2022, Eq. 3 and 4.
    """
    return _op(x_adv, grad, x, v, eps, step_scale, c, min_step, max_step, beta, lo, hi, backend=backend)
