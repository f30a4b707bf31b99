"""One PGD step in the L2 ball, in place: a sweep over each example for its sums, and one that moves it."""

from torch import Tensor

from pyengm.ops._pgd_step import pgd_step_op

_op = pgd_step_op("pgd_l2_step_", sums_rows=True)


def pgd_l2_step_(
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
    """x_adv <- clip(x + d min(1, eps / |d|), lo, hi) with d = x_adv + step grad / |grad| - x, in place, by example.

    x_adv, grad, x: (n, ...) float32, float64, bfloat16 or float16, x_adv contiguous or channels_last. |.| is the L2
    norm of an example; all is computed in float64 and rounded at the end. An example whose gradient has the norm 0, inf
    or nan takes no step, but is projected and clipped as any other.
    step: a number, or one per example, (n,) in x_adv's dtype, float32 for the 16-bit ones. eps, step, lo, hi are
    in the units of x.
    mask: (n,) bool; examples where it is False stay as they are.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns x_adv. Raises ValueError on shapes, types, devices or numbers that do not fit, RuntimeError when a
    tensor requires grad outside torch.no_grad(). Source: Madry et al. 2018, Eq. 2.2 and App. A, in the L2 norm.
    """
    if isinstance(step, Tensor):
        _op(x_adv, grad, x, 0.0, eps, lo, hi, step, mask, backend=backend)
    else:
        _op(x_adv, grad, x, step, eps, lo, hi, None, mask, backend=backend)
    return x_adv
