"""One PGD step in the L-infinity ball, in place: one read of three tensors, one write."""

from torch import Tensor

from pyengm.ops._pgd_step import pgd_step_op, run_pgd_step

_op = pgd_step_op("pgd_linf_step_", sums_rows=False)


def pgd_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: float | Tensor,
    eps: float,
    *,
    lo: float = 0.0,
    hi: float = 1.0,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x_adv <- clip(clip(x_adv + step_size * sign(grad), x - eps, x + eps), lo, hi), in place.

    sign(0) = sign(nan) = 0. An element where x_adv or x is nan becomes nan. Arithmetic on 16-bit types
    is in float32, and the result is rounded once.

    Args:
        x_adv: (n, ...), float32, float64, bfloat16 or float16, contiguous or channels_last; changed in place.
        grad: gradient of the loss in x_adv; shape and type of x_adv, any strides.
        x: centre of the ball; shape and type of x_adv, any strides.
        step_size: in units of x; one value, or one per example, (n,) in the type of x_adv, float32 for 16-bit types.
        eps: radius of the ball, in units of x, at least 0.
        lo: least value of a pixel, in units of x.
        hi: largest value of a pixel, in units of x.
        mask: (n,) bool; examples where it is False do not change. None: all examples take the step.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        x_adv.

    Raises:
        ValueError: a shape, type, device or value is not as above, or tensors overlap.
        RuntimeError: a tensor requires grad outside torch.no_grad().

    References:
        Madry et al. 2018, Eq. 2.2.
    """
    return run_pgd_step(_op, x_adv, grad, x, step_size, eps, lo, hi, mask, backend)
