"""The weights of ENGM from per-example gradient norms."""

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import SUFFIX, Op, fail, require_no_grad

NAME = "clip_weights"


def _check(norms, alpha) -> None:
    if norms.dtype not in SUFFIX or norms.dim() != 1:
        fail(NAME, "norms of shape (n,) in float32 or float64", (tuple(norms.shape), norms.dtype))
    if not alpha > 0:
        fail(NAME, "alpha > 0", alpha)
    require_no_grad(NAME, norms)


def _native(call, norms, alpha) -> Tensor:
    norms = norms.contiguous()
    out = torch.empty_like(norms)
    if norms.numel():
        call(f"clip_weights_{SUFFIX[norms.dtype]}", out.data_ptr(), norms.data_ptr(), norms.numel(), alpha)
    return out


_op = Op(
    "clip_weights(Tensor norms, float alpha) -> Tensor",
    check=_check,
    fake=lambda norms, alpha: torch.empty_like(norms, memory_format=torch.contiguous_format),
    reference=reference.clip_weights,
    native=_native,
)


def clip_weights(norms: Tensor, alpha: float, *, backend: str | None = None) -> Tensor:
    """Weights w_i = min(alpha / norm_i, 1): no weighted gradient has a norm above alpha.

    A norm of 0 gives 1, inf gives 0 and nan gives nan, so that an example with a nan is noticed.

    Args:
        norms: (n,), gradient norms, at least 0, float32 or float64.
        alpha: largest norm of a weighted gradient, > 0; inf gives 1 for every example.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        Weights (n,) in the type of norms.

    Raises:
        ValueError: a shape, type or value is not as above.
        RuntimeError: norms requires grad outside torch.no_grad().

    References:
        Dabouei et al. 2022, Eq. 5.
    """
    return _op(norms, alpha, backend=backend)
