"""What is added up over the batches of an epoch, on the device: reading it would keep the host waiting."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyengm.training.steps.train_step import StepStats

# Counts and what belongs to them, all of which add up over batches and processes: images; examples with a gradient
# norm, these norms and their squares; examples of fits of the norms, and the errors found there.
SUMS = ("images", "loss", "robust", "clipped", "normed", "norm", "square_norm", "fitted", "fit_error")


def zero_sums(device: torch.device) -> Tensor:
    """Zeros, (9,) float64, in the order of `SUMS`."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def measure(used: StepStats, y: Tensor) -> Tensor:
    """Sums over all images of all passes that classify; y: (n,) labels of the images, or of each pass's in turn."""
    sums = zero_sums(y.device)
    images, loss, robust, clipped, normed, norm, square_norm, fitted, fit_error = sums
    place = 0
    for outcome, weights in used:
        if outcome.logits is None:
            continue
        n = len(outcome.losses)
        labels = y[place : place + n] if len(y) > n else y
        place += n
        images += n
        loss += outcome.losses.detach().double().sum()
        robust += (outcome.logits.argmax(dim=1) == labels).sum()
        if weights is None:
            continue
        clipped += (weights.weights < 1).sum()
        if weights.norms is not None:
            finite = weights.norms.isfinite()  # one that is not makes fp16 skip the step
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


def write_sums(sums: dict[str, float], device: torch.device) -> Tensor:
    """The inverse of `read_sums`."""
    return torch.tensor([sums[name] for name in SUMS], dtype=torch.float64, device=device)


def means(sums: Mapping[str, float]) -> dict[str, float | None]:
    """The figures of a logger's row (`Logger`) that the sums give; None where nothing was counted."""
    grad_norm = _mean(sums["norm"], sums["normed"])
    square = _mean(sums["square_norm"], sums["normed"])
    return {
        "loss": _mean(sums["loss"], sums["images"]),
        "train_robust": _mean(sums["robust"], sums["images"]),
        "clipped": _mean(sums["clipped"], sums["images"]),
        "grad_norm_mean": grad_norm,
        "grad_norm_variance": None if grad_norm is None else max(square - grad_norm**2, 0.0),
        "grad_norm_error": _mean(sums["fit_error"], sums["fitted"]),
    }


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
