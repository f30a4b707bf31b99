"""Weights and norms of the examples of a batch, summarised for a log."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyengm.pergrad import PerExampleStats

QUANTILES = (0.1, 0.5, 0.9)


def summarize(used: Sequence[PerExampleStats]) -> dict[str, float]:
    """The share of clipped examples, and mean and quantiles of weights and norms over all examples of the calls.

    Args:
        used: What the backward calls of a step returned.

    Returns:
        "clipped", and "weight", "norm" and "input_norm" with "_mean", "_p10", "_p50" and "_p90", where computed.
    """
    if not used:
        return {}
    values = {
        "weight": [one.weights for one in used],
        "norm": [one.norms for one in used if one.norms is not None],
        "input_norm": [one.input_norms for one in used if one.input_norms is not None],
    }
    joined = {name: torch.cat(parts) for name, parts in values.items() if parts}
    summary = {"clipped": (joined["weight"] < 1).double().mean()}
    for name, all_values in joined.items():
        summary |= _describe(name, all_values)
    return dict(zip(summary, torch.stack(list(summary.values())).tolist(), strict=True))  # one transfer


def noise_scale(used: Sequence[PerExampleStats], grad_square: Tensor, processes: int) -> dict[str, float]:
    """The gradient noise scale tr(Sigma) / |G|^2 of the weighted gradients w_i g_i, from their norms and their mean.

    It is the batch size near which larger batches begin to bring less. Sigma is the covariance over examples, G the
    true mean; both are estimated without bias, so a mean gradient within its own noise gives none.

    Args:
        used: What the backward calls of a step returned, each with norms.
        grad_square: |.grad|^2 of all parameters, the mean of the w_i g_i over the examples of all processes.
        processes: The number of processes with as many examples each.

    Returns:
        "noise_scale", or nothing where it cannot be estimated.

    References:
        McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", Eq. 2.9 and Appendix A.1.
    """
    squares = torch.cat([(one.weights.double() * one.norms.double()).square() for one in used if one.norms is not None])
    n = len(squares) * processes
    mean_square, grad_square = torch.stack([squares.mean(), grad_square.to(squares)]).tolist()
    if n < 2:
        return {}
    trace = (mean_square - grad_square) * n / (n - 1)
    true = grad_square - trace / n
    return {"noise_scale": trace / true} if trace > 0 and true > 0 else {}


def _describe(name: str, values: Tensor) -> dict[str, Tensor]:
    values = values.double()
    quantiles = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype, device=values.device))
    by_name = {f"{name}_p{100 * q:.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
    return {f"{name}_mean": values.mean()} | by_name
