"""Expected norm and variance of per-example gradients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches, model_mode
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.pergrad import per_example_grad_norms


@dataclass(frozen=True)
class GradientStatistics:
    """Gradients g_i = dL_i / dtheta of the cross-entropy of n examples at one point theta.

    Args:
        mu: E|g_i|.
        sigma2: E|g_i - E g|^2 = E|g_i|^2 - |E g_i|^2, the variance of the gradient of one example.
        mean_norm: |E g_i|, the norm of the gradient of the batch of all n.
        norms: (n,) |g_i|.
        input_norms: (n,) |dL / dx_i| with L the sum of the losses of the batch; without batch norm in training mode
            |dL_i / dx_i|.
        losses: (n,).
    """

    mu: float
    sigma2: float
    mean_norm: float
    norms: np.ndarray
    input_norms: np.ndarray
    losses: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """A histogram of the norms, with mu."""
        (axes,) = make_axes(ax)
        axes.hist(self.norms, bins=40, color=COLORS[0], alpha=0.8)
        axes.axvline(self.mu, color=COLORS[1], label=f"$\\mu$ = {self.mu:.3g}, $\\sigma^2$ = {self.sigma2:.3g}")
        axes.legend(frameon=False)
        return finish(axes, "norm of an example's gradient", "examples")


def gradient_statistics(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Any = None,
    bn: str = "train",
    norms: str = "exact",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> GradientStatistics:
    """The mean norm and the variance of per-example gradients, as ENGM's Fig. 2 and Table 5 have them.

    Args:
        model: Classifier of images in [0, 1]; its gradients and running statistics stay as they are.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Called as attack(model, x, y); None for natural gradients.
        bn: Mode of dropout and norm layers, "train" as in training, where a gradient belongs to an example in its
            batch, or "eval".
        norms: See `pyengm.per_example_grad_norms`; "exact" takes a backward pass for every example under batch norm.
        batch_size: Examples at a time; under batch norm in training mode those of a batch belong together.
        seed: Of random starts.

    Returns:
        The statistics.

    Raises:
        DataError: Images or labels do not fit.
        UnsupportedOperationError, NonFiniteError: For the reasons that `per_example_grad_norms` lists.

    References:
        Dabouei et al. 2022, Sec. 2.2 (mu and sigma^2 of Assumption 2), Fig. 2 and Table 5.
    """
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    parts: list[Tensor] = []
    for x, y, index in batches(images, labels, batch_size):
        x_adv = attacked(model, attack, x, y, index, seed).requires_grad_()
        with model_mode(model, bn):
            losses = F.cross_entropy(model(x_adv), y, reduction="none")
            found = per_example_grad_norms(losses, params, norms=norms if bn == "train" else "auto")
            *grads, input_grad = torch.autograd.grad(losses.sum(), [*params, x_adv], allow_unused=True)
        for t, g in zip(total, grads, strict=True):
            if g is not None:
                t += g.double()
        parts.append(
            torch.stack([found.double(), input_grad.flatten(1).double().norm(dim=1), losses.double()]).detach()
        )
    values = torch.cat(parts, dim=1).cpu().numpy()
    mean_square = sum(t.square().sum().item() for t in total) / values.shape[1] ** 2
    sigma2 = float((values[0] ** 2).mean() - mean_square)
    return GradientStatistics(float(values[0].mean()), sigma2, mean_square**0.5, *values)
