"""The adversarial loss along random directions of the weights, normalised filter by filter."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches
from pyengm.analysis.plotting import COLORS, figure_of, finish, make_axes
from pyengm.attacks import attack_mode
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class WeightPlane:
    """Mean losses L(theta + a d) or L(theta + a d + b e).

    Args:
        steps: (R,) values of a, and of b.
        losses: (S, R) along a direction for each seed, or (S, R, R), where the second axis is that of b.
    """

    steps: np.ndarray
    losses: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """A line for each seed, or contours of the first one."""
        (axes,) = make_axes(ax)
        if self.losses.ndim == 3:
            drawn = axes.contourf(self.steps, self.steps, self.losses[0], levels=20, cmap="viridis")
            figure_of(axes).colorbar(drawn, ax=axes, label="adversarial loss")
            return finish(axes, "first direction", "second direction")
        for k, values in enumerate(self.losses):
            axes.plot(self.steps, values, color=COLORS[k % len(COLORS)], alpha=0.8)
        return finish(axes, "step along a filter-normalised direction", "adversarial loss")


def weight_plane(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Any,
    *,
    dims: int = 1,
    resolution: int = 21,
    extent: float = 1.0,
    seeds: Sequence[int] = (0,),
    bn: str = "eval",
    batch_size: int = BATCH_SIZE,
) -> WeightPlane:
    """The loss around the weights, with the attack made anew at every point.

    Args:
        model: Classifier of images in [0, 1]; its weights are as before afterwards.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: None for the natural loss.
        dims: 1 or 2.
        resolution: R, odd, so that the weights themselves are a point.
        extent: The largest a; at 1 the step is as long as the weights of each filter.
        seeds: A direction, or a pair, for each.
        bn: Mode of dropout and norm layers, "eval" or "batch_stats".
        batch_size: Images at a time.

    Raises:
        ConfigError: A value is out of range.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Li et al. 2018, "Visualizing the loss landscape of neural nets", Sec. 4; Kanai et al. 2023, Fig. 7.
    """
    if dims not in (1, 2) or resolution < 3 or resolution % 2 == 0 or extent <= 0 or not seeds:
        raise ConfigError(
            f"expected dims of 1 or 2, an odd resolution >= 3, an extent > 0 and seeds; got {dims}, {resolution}, "
            f"{extent}, {list(seeds)}"
        )
    steps = torch.linspace(-extent, extent, resolution, dtype=torch.float64)
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    losses = []
    try:
        for seed in seeds:
            chosen = [filter_normalized(before, 2 * seed + k) for k in range(dims)]
            shared = {"images": images, "labels": labels, "attack": attack, "bn": bn, "size": batch_size}
            loss = partial(_loss_at, model, params, before, chosen, **shared)
            rows = [[loss(point) for point in row] for row in _points(steps, dims)]
            losses.append(rows[0] if dims == 1 else rows)
    finally:
        _set(params, before)
    return WeightPlane(steps.numpy(), np.asarray(losses))


def filter_normalized(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A normal random direction, each filter as long as the weights' own; 0 for biases and norm layers."""
    generator = torch.Generator().manual_seed(seed)
    direction = []
    for w in weights:
        if w.dim() < 2:
            direction.append(torch.zeros_like(w))
            continue
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device)
        scale = w.double().flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)
        direction.append((d * scale.view(-1, *[1] * (w.dim() - 1))).to(w))
    return direction


def _points(steps: Tensor, dims: int) -> list[list[tuple[float, ...]]]:
    values = steps.tolist()
    return [[(a,) for a in values]] if dims == 1 else [[(a, b) for a in values] for b in values]


def _loss_at(
    model: nn.Module,
    params: list[Tensor],
    before: list[Tensor],
    directions: list[list[Tensor]],
    point: tuple[float, ...],
    *,
    images: Tensor,
    labels: Tensor,
    attack: Any,
    bn: str,
    size: int,
) -> float:
    moved = [w.clone() for w in before]
    for step, direction in zip(point, directions, strict=True):
        for w, d in zip(moved, direction, strict=True):
            w.add_(d, alpha=step)
    _set(params, moved)
    total = 0.0
    for x, y, index in batches(images, labels, size):
        x_adv = attacked(model, attack, x, y, index, 0)
        with attack_mode(model, bn), torch.no_grad():
            total += F.cross_entropy(model(x_adv).double(), y, reduction="sum").item()
    return total / len(labels)


@torch.no_grad()
def _set(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
