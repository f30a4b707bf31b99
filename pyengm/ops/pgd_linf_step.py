"""One PGD step in the L-infinity ball, in place: one read of three tensors, one write."""

from torch import Tensor

from pyengm.ops._pgd_step import pgd_step_op

_op = pgd_step_op("pgd_linf_step_", sums_rows=False)


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
