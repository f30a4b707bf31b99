"""The loss on a plane of inputs through an image, its adversarial direction and a random one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode, attacked, device_of, losses_at, to_array
from pyengm.analysis.parts import Arrays, Parts
from pyengm.errors import ConfigError
from pyengm.ops import Key, Purpose, philox_normal
from pyengm.utils.figures import HEAT, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class InputPlane:
    """Losses at x + a d1 + b d2, with d1 the perturbation of an attack and d2 a random direction orthogonal to it.

    Attributes:
        grid: (R,) values of a and of b; the attack is at a = 1, b = 0.
        losses: (n, R, R) cross-entropy at [i, a, b].
        norms: (n,) L2 norms of d1 in pixel units, which are those of d2.
    """

    grid: np.ndarray
    losses: np.ndarray
    norms: np.ndarray

    def mean(self, rows: Sequence[int] | np.ndarray | None = None) -> "InputPlane":
        """The plane of the mean loss over some of the images, or over all."""
        chosen = slice(None) if rows is None else np.asarray(rows)
        losses, norms = (values[chosen].mean(0, keepdims=True) for values in (self.losses, self.norms))
        return replace(self, losses=losses, norms=norms)

    def levels(self, count: int = 15) -> np.ndarray:
        """Levels of the loss, equally spaced; given to `plot` of several planes they make these comparable."""
        low, high = float(self.losses.min()), float(self.losses.max())
        return np.linspace(low, high if high > low else low + 1e-6, count)

    def plot(self, ax: "Axes | None" = None, *, levels: np.ndarray | None = None) -> "Axes":
        """Contours of the mean loss over the images, of one image where there is one.

        Args:
            ax: Axes; None for those of a new figure.
            levels: Levels of the loss; None for those of the mean.
        """
        ax = axes_or_new(ax, 5, 4)
        mean = self.mean()
        filled = ax.contourf(
            self.grid,
            self.grid,
            mean.losses[0].T,
            mean.levels() if levels is None else levels,
            cmap=HEAT,
            extend="both",
        )
        ax.figure.colorbar(filled, ax=ax, label="cross-entropy loss")
        ax.plot(0, 0, "x", color="white", markersize=9, markeredgewidth=2, label="the image")
        ax.plot(1, 0, "o", color="white", markersize=6, markerfacecolor="none", markeredgewidth=2, label="the attack")
        ax.set(xlabel="along the attack, in its norm", ylabel="along a random direction, in the same norm")
        ax.legend(loc="upper left", facecolor="0.4", labelcolor="white", fontsize="small")
        return ax


def input_plane(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    resolution: int = 41,
    extent: float = 1.5,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> InputPlane:
    """The loss on the plane of an attack's perturbation and a random direction, made orthogonal to it by Gram-Schmidt.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Its perturbation is d1, such as that of PGD-20 or FGSM; where it is 0, so is d2.
        resolution: Number R of values on an axis, odd, so that the image is among them.
        extent: The grid runs from -extent to extent, in norms of d1. Its points may lie outside of [0, 1].
        bn: "eval", or "train" for statistics of the batch that an image is in.
        batch_size: Largest size of a batch.
        seed: Of random directions, random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Losses (n, R, R).

    Raises:
        ConfigError: resolution is even or below 3, extent is not positive, or the mode is unknown.
        DataError: Images or labels do not fit.

    References:
        Dabouei et al. 2022, Fig. 4; Huang et al. 2022, "Fast Adversarial Training with Adaptive Step Size", Figs. 1, 2
        and 9.
    """
    if resolution < 3 or resolution % 2 == 0 or not extent > 0:
        raise ConfigError(f"expected an odd resolution >= 3 and an extent > 0, got {resolution} and {extent}")
    batches, device = Batches(images, labels, batch_size, seed), device_of(model)
    grid = torch.linspace(-extent, extent, resolution, dtype=torch.float64)
    grid[resolution // 2] = 0.0  # the image itself, without rounding

    def plane(number: int) -> Arrays:
        batch = batches.get(number, device)
        d1 = attacked(model, batch, attack) - batch.x
        d2 = orthogonal_direction(d1, batch.key)
        losses = torch.empty(resolution, resolution, len(batch.x), dtype=torch.float64)
        with analysis_mode(model, bn, seed):
            for i, a in enumerate(grid.tolist()):
                for j, b in enumerate(grid.tolist()):
                    losses[i, j] = losses_at(model, batch.x + a * d1 + b * d2, batch.y)[0]
        return {"losses": to_array(losses.permute(2, 0, 1)), "norms": to_array(d1.double().flatten(1).norm(dim=1))}

    found = list((parts or Parts()).run(len(batches), plane))
    return InputPlane(grid.numpy(), *(np.concatenate([part[name] for part in found]) for name in ("losses", "norms")))


def orthogonal_direction(d1: Tensor, key: Key) -> Tensor:
    """Random directions, orthogonal to d1 (n, ...) and of its norms, by Gram-Schmidt."""
    shape = tuple(d1.shape[1:])
    noise = philox_normal(key.index, shape, seed=key.seed, epoch=key.epoch, purpose=Purpose.PLANE)
    first, second = d1.flatten(1).double(), noise.flatten(1).double()
    squares = first.square().sum(1, keepdim=True)
    second = second - (second * first).sum(1, keepdim=True) / squares.where(squares > 0, 1.0) * first
    norms = second.norm(dim=1, keepdim=True)
    return (second * squares.sqrt() / norms.where(norms > 0, 1.0)).view_as(d1).to(d1.dtype)
