"""The adversarial loss along random directions of the weights, with filter normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode, losses_at
from pyengm.analysis.parts import Arrays, Parts
from pyengm.analysis.weight_space import adversarial_batches, gaussian_like, moved, trained_params
from pyengm.errors import ConfigError
from pyengm.utils.figures import COLORS, HEAT, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class WeightPlane:
    """Mean losses at theta + a d, or theta + a d1 + b d2, with the attack made anew at every point.

    Attributes:
        grid: (R,) values of a and b; the model is at 0.
        losses: (S, R) along one direction of each seed; or (R, R) at [a, b] on the plane of two seeds' directions.
        seeds: (S,) or (2,) seeds of the directions.
    """

    grid: np.ndarray
    losses: np.ndarray
    seeds: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The loss by distance: lines of all seeds and their mean, or contours."""
        ax = axes_or_new(ax)
        if self.losses.shape[0] == len(self.seeds):
            for row in self.losses:
                ax.plot(self.grid, row, color=COLORS[0], alpha=0.3, linewidth=0.9)
            ax.plot(self.grid, self.losses.mean(0), color=COLORS[0], label=f"mean of {len(self.seeds)} directions")
            ax.set(xlabel="distance along a filter-normalised direction", ylabel="cross-entropy loss under attack")
            ax.legend()
            return ax
        filled = ax.contourf(self.grid, self.grid, self.losses.T, 15, cmap=HEAT)
        ax.figure.colorbar(filled, ax=ax, label="cross-entropy loss under attack")
        ax.plot(0, 0, "x", color="white", markersize=9, markeredgewidth=2)
        ax.set(xlabel="distance along direction 1", ylabel="distance along direction 2")
        return ax


def weight_plane(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None,
    dims: int = 1,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    resolution: int = 21,
    extent: float = 1.0,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> WeightPlane:
    """The mean loss under attack around the weights of a model, along filter-normalised directions.

    Args:
        model: Classifier of images in [0, 1]; its weights are moved, and put back.
        images: (n, ...) in [0, 1], of the training or of the test split.
        labels: (n,) int64.
        attack: Made anew at every point; None for the loss of the images themselves.
        dims: 1: a line for each seed; 2: the plane of two seeds.
        seeds: Of the directions; two for a plane.
        resolution: Number R of values on an axis, odd, so that the model is among them.
        extent: The grid runs from -extent to extent. At distance 1 every filter moves by its own norm.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of random starts and dropout, the same at every point.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Losses.

    Raises:
        ConfigError: A value is out of range.
        DataError: Images or labels do not fit.

    References:
        Kanai et al. 2023, "Relationship between Nonsmoothness in Adversarial Training, Constraints of Attacks, and
        Flatness in the Input Space", Fig. 7; Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", Sec. 4.
    """
    _check(dims, seeds, resolution, extent)
    batches, params = Batches(images, labels, batch_size, seed), trained_params(model)
    directions = [filter_normalised(gaussian_like(params, one), params) for one in seeds]
    grid = np.linspace(-extent, extent, resolution)
    grid[resolution // 2] = 0.0

    def at(*moves: tuple[float, list[Tensor]]) -> float:
        with moved(params, *moves):
            return _mean_loss(model, batches, attack, bn)

    def row(number: int) -> Arrays:
        if dims == 1:
            return {"losses": np.array([at((a, directions[number])) for a in grid])}
        return {"losses": np.array([at((grid[number], directions[0]), (b, directions[1])) for b in grid])}

    rows = (parts or Parts()).run(len(seeds) if dims == 1 else resolution, row)
    return WeightPlane(grid, np.stack([part["losses"] for part in rows]), np.array(seeds))


def filter_normalised(direction: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Directions whose filters have the norms of the weights' filters.

    Args:
        direction: Tensors like the parameters, in float64.
        params: The parameters. A filter is a row along the first axis of one with two axes or more; biases and the
            weights of norm layers do not move.

    Returns:
        Tensors in float64.
    """
    scaled = []
    for d, p in zip(direction, params, strict=True):
        if p.dim() < 2:
            scaled.append(torch.zeros_like(d))
            continue
        own, given = (t.detach().double().flatten(1).norm(dim=1).view(-1, *[1] * (p.dim() - 1)) for t in (p, d))
        scaled.append(d * own / given.where(given > 0, 1.0))
    return scaled


def _mean_loss(model: nn.Module, batches: Batches, attack: Attack | None, bn: str) -> float:
    total = 0.0
    for number, (x, y) in enumerate(adversarial_batches(model, batches, attack)):
        with analysis_mode(model, bn, batches.seed + number):
            total += losses_at(model, x, y)[0].double().sum().item()
    return total / len(batches.images)


def _check(dims: int, seeds: Sequence[int], resolution: int, extent: float) -> None:
    if dims not in (1, 2) or len(seeds) < 1 or (dims == 2 and len(seeds) != 2):
        raise ConfigError(f"expected dims=1 with 1 seed or more, or dims=2 with 2, got {dims} with {list(seeds)}")
    if resolution < 3 or resolution % 2 == 0 or not extent > 0:
        raise ConfigError(f"expected an odd resolution >= 3 and an extent > 0, got {resolution} and {extent}")
    if dims == 1 and len(seeds) == resolution:
        raise ConfigError(f"{resolution} seeds with a resolution of {resolution} would look like a plane")
