"""One PGD step in the L2 ball, in place: one sweep over each example for its sums, and one that moves it."""

from torch import Tensor

from pyengm.ops._pgd_step import pgd_step_op, run_pgd_step

_op = pgd_step_op("pgd_l2_step_", sums_rows=True)


def pgd_l2_step_(
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
    """x_adv <- clip(x + d min(1, eps / |d|), lo, hi) with d = x_adv + step_size grad / |grad| - x, in place.

    |.| is the L2 norm of each example. All arithmetic is in float64, and the result is rounded once. An example whose
    gradient has norm 0, inf or nan takes no step, but is projected and clipped like the others. An example with inf or
    nan in x_adv or x becomes nan, as it is at no distance from x.

    On CUDA float32 and 16-bit types are computed in pairs of float32. With m = |x_adv - x| + |step_size|, r = |d| and
    s = |x_adv| + |x| + |step_size| of an element, its error is below 2^-31 (m / r)^2 min(r, eps) + 2^-42 s before it is
    rounded (2^-20 s from s = 2^120 on); for 16-bit types 2^-12 of the result is added to that.

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
        Madry et al. 2018, Eq. 2.2 and App. A, in the L2 norm.
    """
    return run_pgd_step(_op, x_adv, grad, x, step_size, eps, lo, hi, mask, backend)
