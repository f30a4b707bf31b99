"""Sums over the batches of an epoch, kept on the device because reading them makes the host wait."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyengm.training.steps import StepStats

# All of these add up over batches and processes: images, their losses, those classified correctly and those with a
# weight below 1; examples with a gradient norm, the norms and their squares; examples on which estimated norms were
# fitted, and the errors of the estimates there; examples whose attack stops by their FOSC, their FOSC, the steps that
# they took and those that were stopped; |gradient|^2 of batches, and the number of these.
OF_IMAGES = ("images", "loss", "robust", "clipped", "normed", "norm", "square_norm", "fitted", "fit_error")
OF_FOSC = ("attacked", "fosc", "attack_steps", "stopped")
OF_GRADIENTS = ("grad_square", "gradients")
SUMS = OF_IMAGES + OF_FOSC + OF_GRADIENTS


def zero_sums(device: torch.device) -> Tensor:
    """Zeros, (15,) float64, in the order of `SUMS`."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def measure(stats: StepStats, y: Tensor, grad_squares: Tensor | None = None) -> Tensor:
    """Sums over the images of all passes that classify.

    Args:
        stats: What a step returned.
        y: (n,) int64 labels of the images, or of the images of each pass in turn.
        grad_squares: (2,) of the gradients of the step, see `PerExampleSGD.take_grad_squares`.

    Returns:
        The sums, (15,) float64, in the order of `SUMS`.
    """
    sums = zero_sums(y.device)
    of_images, of_fosc, of_gradients = sums.split([len(OF_IMAGES), len(OF_FOSC), len(OF_GRADIENTS)])
    if grad_squares is not None:
        of_gradients += grad_squares.to(y.device)
    for output, _ in stats:
        if output.fosc is not None:
            of_fosc += torch.stack([torch.ones_like(output.fosc.fosc), *output.fosc]).double().sum(dim=1)
    _add_images(of_images, stats, y)
    return sums


def _add_images(sums: Tensor, stats: StepStats, y: Tensor) -> None:
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
        "batch_grad_square": _mean(sums["grad_square"], sums["gradients"]),
    } | _of_fosc(sums)


def _of_fosc(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Of attacks that stop by the FOSC alone."""
    if not sums["attacked"]:
        return {}
    names = {"fosc_mean": "fosc", "attack_steps_mean": "attack_steps", "stopped": "stopped"}
    return {name: _mean(sums[total], sums["attacked"]) for name, total in names.items()}


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
