"""The loss on a plane of images, spanned by an adversarial direction and one orthogonal to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import attacked, batches
from pyengm.analysis.plotting import figure_of, finish, make_axes
from pyengm.attacks import attack_mode
from pyengm.errors import ConfigError
from pyengm.ops import Purpose, philox_normal


@dataclass(frozen=True)
class InputPlane:
    """Losses L(x + eps (a d1 + b d2)) of n images.

    Args:
        steps: (R,) the values of a and of b, from -1 to 1 times the extent.
        losses: (n, R, R) cross-entropy; the second axis is that of b, the third that of a.
    """

    steps: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(R, R) the mean over the images."""
        return self.losses.mean(0)

    def plot(self, ax: Any = None, *, levels: Any = 20) -> Any:
        """Contours of the mean; give several planes the same levels to compare them."""
        (axes,) = make_axes(ax)
        drawn = axes.contourf(self.steps, self.steps, self.mean, levels=levels, cmap="viridis")
        figure_of(axes).colorbar(drawn, ax=axes, label="cross-entropy")
        axes.plot(0, 0, "o", color="white", markersize=4)
        return finish(axes, "adversarial direction, in units of eps", "orthogonal direction")


def input_plane(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Any,
    *,
    eps: float,
    resolution: int = 41,
    extent: float = 1.0,
    bn: str = "eval",
    batch_size: int = 512,
    seed: int = 0,
) -> InputPlane:
    """The loss around images, on the plane of the paper.

    d1 is the perturbation that the attack finds, and d2 a normal random direction made orthogonal to it by Gram and
    Schmidt; both are scaled to a maximum norm of 1. Pixels are clipped to [0, 1].

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Such as PGD or FGSM, which moves the images. One that leaves an image as it is gives it a plane of d2
            alone.
        eps: The unit of both axes, in pixel units.
        resolution: R, odd, so that the image itself is a point.
        extent: The largest a and b.
        bn: Mode of dropout and norm layers, "eval" or "batch_stats".
        batch_size: Images at a time.
        seed: Of the random directions and starts.

    Raises:
        ConfigError: A value is out of range.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Dabouei et al. 2022, Fig. 4; Huang et al. 2022, Fig. 1, 2 and 9.
    """
    if resolution < 3 or resolution % 2 == 0 or eps <= 0 or extent <= 0:
        raise ConfigError(f"expected an odd resolution >= 3, eps and extent > 0, got {resolution}, {eps} and {extent}")
    steps = torch.linspace(-extent, extent, resolution, dtype=torch.float64)
    parts = []
    for x, y, index in batches(images, labels, max(batch_size // resolution, 1)):
        d1, d2 = directions(attacked(model, attack, x, y, index, seed) - x, index, seed)
        rows = []
        for b in steps:
            moved = x[:, None] + eps * (_over(steps, x) * d1[:, None] + b.item() * d2[:, None])  # (n, R, ...)
            flat = moved.clamp(0, 1).flatten(0, 1)
            with attack_mode(model, bn), torch.no_grad():
                logits = model(flat)
            losses = F.cross_entropy(logits.double(), y.repeat_interleave(resolution), reduction="none")
            rows.append(losses.view(len(x), resolution))
        parts.append(torch.stack(rows, dim=1).cpu())
    return InputPlane(steps.numpy(), torch.cat(parts).numpy())


def directions(delta: Tensor, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """d1 along delta (n, ...), and d2 orthogonal to it, each with a maximum norm of 1."""
    noise = philox_normal(index, tuple(delta.shape[1:]), seed=seed, purpose=Purpose.DIRECTION).to(delta)
    flat, random = delta.flatten(1).double(), noise.flatten(1).double()
    share = (random * flat).sum(1) / flat.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    d2 = random - share[:, None] * flat
    return _scaled(flat).view_as(delta).to(delta), _scaled(d2).view_as(delta).to(delta)


def _scaled(flat: Tensor) -> Tensor:
    return flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _over(steps: Tensor, x: Tensor) -> Tensor:
    """(1, R, 1, ...)"""
    return steps.to(x).view(1, -1, *[1] * (x.dim() - 1))
