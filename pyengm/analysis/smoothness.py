"""How fast adversarial examples and the gradient of the adversarial loss change with the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.images import Batches
from pyengm.analysis.parts import Arrays, Parts
from pyengm.analysis.weight_space import adversarial_batches, gaussian_like, mean_gradient, moved, trained_params
from pyengm.attacks import PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.utils.figures import COLORS, axes_or_new, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN = "none"


@dataclass(frozen=True)
class Smoothness:
    """Changes over changes of the weights, |dtheta| = radius, in D random directions.

    Attributes:
        threats: (T,) names of threat models; "none" is the loss without an attack.
        radii: (R,) L2 norms of dtheta.
        gradient: (T, R, D) |grad L(theta + dtheta) - grad L(theta)| / |dtheta|, L the mean adversarial loss.
        examples: (T, R, D) mean over the images of |x'(theta + dtheta) - x'(theta)| / |dtheta|, L2 norms.
    """

    threats: np.ndarray
    radii: np.ndarray
    gradient: np.ndarray
    examples: np.ndarray

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The largest change of the gradient and of the examples among the directions, by radius."""
        ax = axes_or_new(ax)
        right = ax.twinx()
        for row, threat in enumerate(self.threats):
            color = COLORS[row % len(COLORS)]
            ax.plot(self.radii, self.gradient[row].max(-1), "o-", color=color, label=f"gradient, {threat}")
            if threat != CLEAN:
                right.plot(self.radii, self.examples[row].max(-1), "s:", color=color)
                ax.plot([], [], "s:", color=color, label=f"examples, {threat} (right)")
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="norm of the change of the weights",
            ylabel="change of the gradient / norm",
        )
        right.set(ylabel="change of the examples / norm", yscale="log")
        legend_above(ax)
        return ax


def smoothness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threats: Sequence[ThreatModel | None],
    *,
    radii: Sequence[float] = (0.001, 0.01, 0.1),
    directions: int = 5,
    steps: int = 20,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> Smoothness:
    """Lower bounds of the Lipschitz constants of adversarial examples and of the gradient of the adversarial loss.

    The examples are those of PGD on the cross-entropy without a random start, with steps of 2.5 eps / steps, on the
    model with its running statistics: a function of the weights. PGD finds a local maximum, so that a jump may also be
    one from a maximum to another.

    Args:
        model: Classifier of images in [0, 1]; its weights are moved, and put back.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        threats: Threat models; None for the loss without an attack.
        radii: (R,) L2 norms of the change of the weights.
        directions: Number D of random directions, the same for all threat models and radii.
        steps: Of PGD.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of the directions and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Quotients (T, R, D).

    Raises:
        ConfigError: There is no threat model, radius or direction, or a radius is not positive.
        DataError: Images or labels do not fit.

    References:
        Kanai et al. 2023, "Relationship between Nonsmoothness in Adversarial Training, Constraints of Attacks, and
        Flatness in the Input Space", Lemmas 1 to 5.
    """
    if not threats or directions < 1 or not min(radii, default=0) > 0:
        raise ConfigError(
            f"expected a threat model, 1 direction and a radius > 0, or more; got {len(threats)}, {directions} and "
            f"{list(radii)}"
        )
    batches = Batches(images, labels, batch_size, seed)

    def of_threat(number: int) -> Arrays:
        found = _quotients(model, batches, _attack(threats[number], steps), radii, directions, bn)
        return dict(zip(("gradient", "examples"), found, strict=True))

    rows = list((parts or Parts()).run(len(threats), of_threat))
    names = [CLEAN if threat is None else str(threat) for threat in threats]
    gradient, examples = (np.stack([row[name] for row in rows]) for name in ("gradient", "examples"))
    return Smoothness(np.array(names), np.array(radii, float), gradient, examples)


def _attack(threat: ThreatModel | None, steps: int) -> PGD | None:
    if threat is None:
        return None
    return PGD(threat.eps, 2.5 * threat.eps / steps, steps, norm=threat.norm, random_start=False)


def _quotients(
    model: nn.Module, batches: Batches, attack: PGD | None, radii: Sequence[float], directions: int, bn: str
) -> np.ndarray:
    """Quotients of the gradient and of the examples, (2, R, D)."""
    params = trained_params(model)
    here = _look(model, params, batches, attack, bn)
    found = np.empty((2, len(radii), directions))
    for d in range(directions):
        direction = gaussian_like(params, batches.seed + d)
        length = sum(t.square().sum().item() for t in direction) ** 0.5
        for r, radius in enumerate(radii):
            with moved(params, (radius / length, direction)):
                there = _look(model, params, batches, attack, bn)
            found[:, r, d] = [change / radius for change in _changes(here, there)]
    return found


def _look(
    model: nn.Module, params: Sequence[Tensor], batches: Batches, attack: PGD | None, bn: str
) -> tuple[list[Tensor], Tensor]:
    """The gradient of the mean loss, and the adversarial examples (n, ...)."""
    inputs = list(adversarial_batches(model, batches, attack))
    return mean_gradient(model, params, inputs, bn, batches.seed), torch.cat([x for x, _ in inputs]).double()


def _changes(here: tuple[list[Tensor], Tensor], there: tuple[list[Tensor], Tensor]) -> tuple[float, float]:
    """Norms of the changes of the gradient, and of the examples in the mean."""
    square = sum((a - b).square().sum().item() for a, b in zip(here[0], there[0], strict=True))
    return square**0.5, (here[1] - there[1]).flatten(1).norm(dim=1).mean().item()
