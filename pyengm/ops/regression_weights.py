"""A-ENGM's weights: a line from input-gradient norms to gradient norms, and the clipping of what it predicts."""

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._register import SUFFIX, Op, fail, require_no_grad

NAME = "regression_weights"


def _check_norms(name, input_norms, norms) -> None:
    if input_norms.dtype not in SUFFIX or input_norms.dim() != 1:
        fail(name, "input_norms of shape (n,) in float32 or float64", (tuple(input_norms.shape), input_norms.dtype))
    require_no_grad(name, input_norms, norms)
    if norms is None:
        return
    if norms.shape != input_norms.shape or norms.dtype != input_norms.dtype or norms.device != input_norms.device:
        expected = f"norms of shape {tuple(input_norms.shape)} in {input_norms.dtype} on {input_norms.device}"
        fail(name, expected, (tuple(norms.shape), norms.dtype, norms.device))


def _check_line(name, gammas, keep, device) -> None:
    if gammas.shape != (2,) or gammas.dtype != torch.float64 or gammas.device != device:
        expected = f"gammas of shape (2,) in torch.float64 on {device}"
        fail(name, expected, (tuple(gammas.shape), gammas.dtype, gammas.device))
    if not 0 <= keep <= 1:
        fail(name, "keep between 0 and 1", keep)
    require_no_grad(name, gammas)


def _check(input_norms, norms, gammas, alpha, keep) -> None:
    _check_norms(NAME, input_norms, norms)
    _check_line(NAME, gammas, keep, input_norms.device)
    if not alpha > 0:
        fail(NAME, "alpha > 0", alpha)


def _native(call, input_norms, norms, gammas, alpha, keep) -> tuple[Tensor, Tensor]:
    x, y, old = input_norms.contiguous(), None if norms is None else norms.contiguous(), gammas.contiguous()
    weights, line = torch.empty_like(x), torch.empty_like(old)
    addresses = [0 if t is None else t.data_ptr() for t in (weights, line, x, y, old)]
    call(f"regression_weights_{SUFFIX[x.dtype]}", *addresses, len(x), alpha, keep)
    return weights, line


def _native_statistics(call, input_norms, norms) -> Tensor:
    x, y = input_norms.contiguous(), norms.contiguous()
    out = x.new_empty(5, dtype=torch.float64)
    call(f"regression_statistics_{SUFFIX[x.dtype]}", out.data_ptr(), x.data_ptr(), y.data_ptr(), len(x))
    return out


_statistics = Op(
    "regression_statistics(Tensor input_norms, Tensor norms) -> Tensor",
    check=lambda input_norms, norms: _check_norms("regression_statistics", input_norms, norms),
    fake=lambda input_norms, norms: input_norms.new_empty(5, dtype=torch.float64),
    reference=reference.regression_statistics,
    native=_native_statistics,
)

_weights = Op(
    "regression_weights(Tensor input_norms, Tensor? norms, Tensor gammas, float alpha, float keep) -> (Tensor, Tensor)",
    check=_check,
    fake=lambda x, norms, gammas, alpha, keep: (x.new_empty(len(x)), gammas.new_empty(2)),
    reference=reference.regression_weights,
    native=_native,
)


def regression_weights(
    input_norms: Tensor,
    norms: Tensor | None,
    gammas: Tensor,
    alpha: float,
    *,
    keep: float = 0.7,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights w_i = min(alpha / (gamma1 x_i + gamma0), 1) and the line that gave them, moved by a least squares fit.

    input_norms: x (n,), norms of the gradients in the inputs; norms: y (n,), those in the parameters, or None, which
    leaves the line as it is; float32 or float64. gammas: (2,) float64, (gamma0, gamma1). keep: the share of the old
    line in gammas <- keep gammas + (1 - keep) (fit of y on x). Where x does not vary the fit keeps gamma1; where a
    norm is not finite gammas stay. A prediction of 0 or less gives the weight 1, inf gives 0 and nan gives nan.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns weights (n,) in the dtype of x, and new gammas (2,). Source: Dabouei et al. 2022, Eq. 6 and 7, with min in
    place of the printed max, which would bound nothing.
    """
    return _weights(input_norms, norms, gammas, alpha, keep, backend=backend)


def regression_statistics(input_norms: Tensor, norms: Tensor, *, backend: str | None = None) -> Tensor:
    """All that the fit needs of n examples: (5,) float64, the sums of 1, x, y, x^2 and x y; these add over processes.

    input_norms, norms: x and y (n,), float32 or float64. backend: None (by device), "reference", "cpu" or "cuda".
    """
    return _statistics(input_norms, norms, backend=backend)


def regression_fit(statistics: Tensor, gammas: Tensor, *, keep: float = 0.7) -> Tensor:
    """The line after a fit to `regression_statistics`, as in `regression_weights`: (2,) float64.

    statistics: (5,), gammas: (2,), float64. In plain PyTorch: it serves five numbers once in many steps.
    """
    if statistics.shape != (5,):
        fail("regression_fit", "statistics of shape (5,)", tuple(statistics.shape))
    _check_line("regression_fit", gammas, keep, statistics.device)
    return reference.regression_fit(statistics, gammas, keep)
