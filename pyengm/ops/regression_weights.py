"""The weights of A-ENGM: a line predicts gradient norms from norms of input gradients; the predictions are clipped."""

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import address
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
    addresses = map(address, (weights, line, x, y, old))
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
    """Weights w_i = min(alpha / (gamma1 x_i + gamma0), 1), after a least squares fit of the line to norms.

    gammas <- keep gammas + (1 - keep) (fit of y on x). Where x does not vary the fit keeps gamma1; where a norm is not
    finite gammas do not change. A prediction of 0 or less gives the weight 1, inf gives 0 and nan gives nan.

    Args:
        input_norms: x (n,), norms of the gradients in the inputs, float32 or float64.
        norms: y (n,), norms of the gradients in the parameters, in the type of x, or None: no fit.
        gammas: (2,) float64, (gamma0, gamma1), intercept and slope of the line.
        alpha: largest norm of a weighted gradient, > 0, in units of y.
        keep: share of the old line in the new one, 0 to 1.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        Weights (n,) in the type of x, and the new gammas (2,).

    Raises:
        ValueError: a shape, type, device or value is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().

    References:
        Dabouei et al. 2022, Eq. 6 and 7, with min in place of the printed max, which would bound nothing.
    """
    return _weights(input_norms, norms, gammas, alpha, keep, backend=backend)


def regression_statistics(input_norms: Tensor, norms: Tensor, *, backend: str | None = None) -> Tensor:
    """The sums that a fit needs: of 1, x, y, x^2 and x y over n examples. They may be added over processes.

    Args:
        input_norms: x (n,), float32 or float64.
        norms: y (n,), in the type of x.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (5,) float64.

    Raises:
        ValueError: a shape, type or device is not as above.
        RuntimeError: a tensor requires grad outside torch.no_grad().
    """
    return _statistics(input_norms, norms, backend=backend)


def regression_fit(statistics: Tensor, gammas: Tensor, *, keep: float = 0.7) -> Tensor:
    """The line after a fit to `regression_statistics`, as in `regression_weights`.

    It is plain PyTorch: five values, once in many steps.

    Args:
        statistics: (5,) float64, of `regression_statistics`.
        gammas: (2,) float64, intercept and slope before the fit.
        keep: share of the old line in the new one, 0 to 1.

    Returns:
        (2,) float64, intercept and slope after the fit.

    Raises:
        ValueError: a shape, type, device or value is not as above.
        RuntimeError: gammas requires grad outside torch.no_grad().
    """
    if statistics.shape != (5,):
        fail("regression_fit", "statistics of shape (5,)", tuple(statistics.shape))
    _check_line("regression_fit", gammas, keep, statistics.device)
    return reference.regression_fit(statistics, gammas, keep)
