"""Expected norm and variance of the gradients of single examples, for a model or along a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.images import (
    Attack,
    Batches,
    Models,
    along_run,
    analysis_mode,
    attacked,
    couples_examples,
    device_of,
    to_array,
)
from pyengm.analysis.parts import Arrays, Parts
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.pergrad import per_example_grad_norms
from pyengm.utils.figures import COLORS, axes_or_new, epochs_on_x

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class GradientStatistics:
    """Gradients g_i of the losses of n examples, for each of E models.

    Attributes:
        epochs: (E,) epochs before each model.
        norms: (E, n) |g_i| over all parameters jointly.
        input_norms: (E, n) norms of the gradients in the inputs.
        mu: (E,) E|g_i|, the mean of the norms.
        sigma2: (E,) E|g_i|^2 - |E g_i|^2, which is E|g_i - E g_i|^2.
    """

    epochs: np.ndarray
    norms: np.ndarray
    input_norms: np.ndarray
    mu: np.ndarray
    sigma2: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """mu and sigma^2 by epoch; for one model, a histogram of the norms."""
        ax = axes_or_new(ax)
        if len(self.epochs) == 1:
            ax.hist(self.norms[0], bins=30, color=COLORS[0])
            ax.axvline(
                self.mu[0], color=COLORS[1], label=rf"$\mu$ = {self.mu[0]:.3g}, $\sigma^2$ = {self.sigma2[0]:.3g}"
            )
            ax.set(xlabel="norm of an example's gradient", ylabel="number of examples")
        else:
            ax.plot(self.epochs, self.mu, "o-", color=COLORS[0], label=r"$\mu$, expected norm")
            ax.plot(self.epochs, self.sigma2, "s--", color=COLORS[1], label=r"$\sigma^2$, variance")
            ax.set(ylabel="gradients of examples", yscale="log")
            epochs_on_x(ax)
        ax.legend()
        return ax


def gradient_statistics(
    models: Models,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None = None,
    bn: str = "eval",
    norms: str = "exact",
    batch_size: int = 128,
    seed: int = 0,
    parts: Parts | None = None,
) -> GradientStatistics:
    """Expected norm and variance of the gradients of single examples.

    Args:
        models: One classifier of images in [0, 1], or several along a run.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Whose examples the losses are of; None for the images themselves.
        bn: "eval", or "train" for statistics of the batch, under which each loss depends on its whole batch.
        norms: As for `per_example_grad_norms`, where batch norm makes the examples of a batch depend on each other.
        batch_size: Largest size of a batch.
        seed: Of random starts, and of dropout in training mode.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        The gradients' norms, mean and variance.

    Raises:
        ConfigError: The mode or the kind of norms is unknown.
        DataError: Images or labels do not fit.
        NonFiniteError: A loss is not finite.
        UnsupportedOperationError: The examples are not independent.

    References:
        Dabouei et al. 2022, "Revisiting Outer Optimization in Adversarial Training", Fig. 2 and Table 5.
    """
    parts = parts or Parts()
    batches = Batches(images, labels, batch_size, seed)
    epochs, rows = [], []
    for epoch, model in along_run(models):
        epochs.append(epoch)
        rows.append(_of_model(model, batches, attack, bn, norms, parts))
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return GradientStatistics(np.array(epochs), **found)


def _of_model(model: nn.Module, batches: Batches, attack: Attack | None, bn: str, norms: str, parts: Parts) -> Arrays:
    device = device_of(model)
    kind = norms if couples_examples(model, bn) else "auto"

    def norms_of_batch(number: int) -> Arrays:
        batch = batches.get(number, device)
        x = attacked(model, batch, attack).detach().requires_grad_()
        with analysis_mode(model, bn, batches.seed + number):
            losses = cross_entropy(logits_of(model, x, batch.y), batch.y)
            found = per_example_grad_norms(losses, model, norms=kind)
        (inputs,) = torch.autograd.grad(losses.sum(), x)
        return {
            "norms": to_array(found),
            "input_norms": to_array(inputs.double().flatten(1).norm(dim=1)),
            "x_adv": x.detach().cpu().numpy(),
        }

    found = list(parts.run(len(batches), norms_of_batch))

    def norm_of_mean(_: int) -> Arrays:
        return {"square": np.array(_square_of_mean(model, batches, (part["x_adv"] for part in found), bn))}

    (mean,) = parts.run(1, norm_of_mean)
    norm, input_norms = (np.concatenate([part[name] for part in found]) for name in ("norms", "input_norms"))
    sigma2 = np.mean(norm**2) - mean["square"]
    return {"norms": norm, "input_norms": input_norms, "mu": norm.mean(), "sigma2": sigma2}


def _square_of_mean(model: nn.Module, batches: Batches, inputs: Iterable[np.ndarray], bn: str) -> float:
    """|E g_i|^2 by one ordinary backward pass per batch, with sums in float64."""
    device = device_of(model)
    params = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    for number, x_adv in enumerate(inputs):
        y = batches.get(number, device).y
        with analysis_mode(model, bn, batches.seed + number):
            losses = cross_entropy(logits_of(model, torch.from_numpy(x_adv).to(device), y), y)
        grads = torch.autograd.grad(losses.sum(), params, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad
    return sum((total / len(batches.images)).square().sum().item() for total in sums)
