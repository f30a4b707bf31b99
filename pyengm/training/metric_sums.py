"""Sums over the batches of an epoch, kept on the device because reading them makes the host wait."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyengm.training.steps import StepStats

# All of these add up over batches and processes: images, their losses, those classified correctly and those with a
# weight below 1; examples with a gradient norm, the norms and their squares; examples on which estimated norms were
# fitted, and the errors of the estimates there.
SUMS = ("images", "loss", "robust", "clipped", "normed", "norm", "square_norm", "fitted", "fit_error")


def zero_sums(device: torch.device) -> Tensor:
    """Zeros, (9,) float64, in the order of `SUMS`."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def measure(stats: StepStats, y: Tensor) -> Tensor:
    """Sums over the images of all passes that classify.

    Args:
        stats: What a step returned.
        y: (n,) int64 labels of the images, or of the images of each pass in turn.

    Returns:
        The sums, (9,) float64, in the order of `SUMS`.
    """
    sums = zero_sums(y.device)
    images, loss, robust, clipped, normed, norm, square_norm, fitted, fit_error = sums
    first = 0
    for output, weights in stats:
        if output.logits is None:
            continue
        n = len(output.losses)
        labels = y[first : first + n] if len(y) > n else y
        first += n
        images += n
        loss += output.losses.detach().double().sum()
        robust += (output.logits.argmax(dim=1) == labels).sum()
        if weights is None:
            continue
        clipped += (weights.weights < 1).sum()
        if weights.norms is not None:
            finite = weights.norms.isfinite()  # fp16 skips the step where one is not
            norms = weights.norms.double().where(finite, 0.0)
            normed += finite.sum()
            norm += norms.sum()
            square_norm += norms.dot(norms)
        if weights.fit_errors is not None:
            fitted += len(weights.fit_errors)
            fit_error += weights.fit_errors.sum()
    return sums


def read_sums(sums: Tensor) -> dict[str, float]:
    """The sums by name, in one transfer."""
    return dict(zip(SUMS, sums.tolist(), strict=True))


def write_sums(sums: Mapping[str, float], device: torch.device) -> Tensor:
    """The inverse of `read_sums`."""
    return torch.tensor([sums[name] for name in SUMS], dtype=torch.float64, device=device)


def means(sums: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics that follow from the sums; their keys are documented in `Logger`. None where nothing was counted.

    grad_norm_var is the variance over examples of the norm, not the gradient variance sigma^2 of the ENGM paper.
    """
    norm, square = _mean(sums["norm"], sums["normed"]), _mean(sums["square_norm"], sums["normed"])
    return {
        "loss": _mean(sums["loss"], sums["images"]),
        "train_robust": _mean(sums["robust"], sums["images"]),
        "clipped": _mean(sums["clipped"], sums["images"]),
        "grad_norm_mean": norm,
        "grad_norm_var": None if norm is None or square is None else max(square - norm**2, 0.0),
        "grad_norm_error": _mean(sums["fit_error"], sums["fitted"]),
    }


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
