"""How fast the gradient of the adversarial loss changes with the weights, against the attack's own change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import attacked, batches, model_mode
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.attacks import THREAT_NORMS
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class Smoothness:
    """Ratios over random steps dtheta of the weights, from theta.

    Args:
        norms: Norms of the threat models, in order.
        radii: (R,) lengths |dtheta|.
        gradient: (norm, R, D) |grad L(theta + dtheta) - grad L(theta)| / |dtheta|, with the attack made anew at both.
        perturbation: (norm, R, D) |x'(theta + dtheta) - x'(theta)| / |dtheta|, L2 norms over all images.
    """

    norms: tuple[str, ...]
    radii: np.ndarray
    gradient: np.ndarray
    perturbation: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """Medians over the directions against the radius, on two axes."""
        first, second = make_axes(ax, 2)
        for axes, values, name in (
            (first, self.gradient, "change of the gradient"),
            (second, self.perturbation, "change of the attack"),
        ):
            for k, norm in enumerate(self.norms):
                axes.loglog(self.radii, np.median(values[k], axis=1), "o-", color=COLORS[k], label=norm)
            axes.legend(frameon=False)
            finish(axes, "length of the step in the weights", f"{name} by its length")
        return [first, second]


def smoothness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable[[str], Any],
    *,
    norms: Sequence[str] = THREAT_NORMS,
    radii: Sequence[float] = (1e-3, 1e-2, 1e-1),
    directions: int = 3,
    bn: str = "eval",
    batch_size: int = 64,
    seed: int = 0,
) -> Smoothness:
    """Measures the quantities that Lemmas 1 to 5 of the paper bound.

    Args:
        model: Classifier of images in [0, 1]; its weights are as before afterwards.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Makes the attack for a norm, such as lambda norm: PGD(EPS[norm], ..., norm=norm, random_start=False).
            A random start is the same at all weights.
        norms: Of the threat models.
        radii: Lengths of the steps, above 0.
        directions: D, normal random directions.
        bn: Mode of dropout and norm layers, "eval" or "train".
        batch_size: Images at a time.
        seed: Of directions and random starts.

    Raises:
        ConfigError: A value is out of range.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Kanai et al. 2023, Sec. 3, Lemmas 1 to 5.
    """
    if not norms or not radii or min(radii) <= 0 or directions < 1:
        raise ConfigError(f"expected norms, radii > 0 and directions >= 1, got {norms}, {radii}, {directions}")
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    shape = (len(norms), len(radii), directions)
    gradient, perturbation = np.zeros(shape), np.zeros(shape)
    try:
        for a, norm in enumerate(norms):
            made = attack(norm)
            here = _look(model, params, images, labels, made, bn, batch_size, seed)
            for d in range(directions):
                unit = _unit(before, seed * directions + d)
                for r, radius in enumerate(radii):
                    _set(params, [w + radius * u for w, u in zip(before, unit, strict=True)])
                    there = _look(model, params, images, labels, made, bn, batch_size, seed)
                    _set(params, before)
                    gradient[a, r, d], perturbation[a, r, d] = (
                        (one - other).norm().item() / radius for one, other in zip(there, here, strict=True)
                    )
    finally:
        _set(params, before)
    return Smoothness(tuple(norms), np.asarray(radii, float), gradient, perturbation)


def _look(
    model: nn.Module, params: list[Tensor], images: Tensor, labels: Tensor, attack: Any, bn: str, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The gradient of the mean adversarial loss, and the adversarial images, flat in float64."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    found = []
    for x, y, index in batches(images, labels, size):
        x_adv = attacked(model, attack, x, y, index, seed)
        with model_mode(model, bn):
            loss = F.cross_entropy(model(x_adv), y, reduction="sum") / len(labels)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        for t, g in zip(total, grads, strict=True):
            if g is not None:
                t += g.double()
        found.append(x_adv.double().flatten())
    return torch.cat([t.flatten() for t in total]), torch.cat(found)


def _unit(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A normal random direction of length 1 over all weights."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device) for w in weights]
    length = sum(d.square().sum() for d in drawn) ** 0.5
    return [(d / length).to(w) for d, w in zip(drawn, weights, strict=True)]


@torch.no_grad()
def _set(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
