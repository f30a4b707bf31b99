"""What attacks share that search for the nearest adversarial example instead of one in a ball."""

import math
from typing import Protocol

import torch
from torch import Tensor

from pyengm.attacks.logits import CheckedModel, Model
from pyengm.attacks.model_state import attack_mode, check_bn_mode
from pyengm.attacks.threat_model import THREAT_NORMS, ThreatModel
from pyengm.attacks.validation import check_batch, finite_logits
from pyengm.errors import ConfigError

ORDERS = {"linf": math.inf, "l2": 2.0}
DUAL_ORDERS = {"linf": 1.0, "l2": 2.0}


class MinimumNorm:
    """Base of attacks that minimise the distance of an adversarial example.

    Args:
        norm: "linf" or "l2", in which the distance is measured.
        steps: Number of forward-backward passes (of each search, where there are several).
        bn: Mode of the model during the attack, see `attack_mode`.

    Raises:
        ConfigError: For values and names out of range.
    """

    def __init__(self, norm: str, steps: int, bn: str):
        if norm not in THREAT_NORMS:
            raise ConfigError(f"norm is {norm!r}; known norms: {', '.join(THREAT_NORMS)}")
        if steps < 1:
            raise ConfigError(f"steps is {steps}; expected at least 1")
        check_bn_mode(bn)
        self.norm, self.steps, self.bn = norm, steps, bn

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Searches for the nearest adversarial examples.

        Args:
            model: Maps images to logits (n, k). It is left as it was.
            x: (n, ...) images in [0, 1].
            y: (n,) int64 labels.

        Returns:
            (n, ...) the nearest adversarial examples in [0, 1] that were found. It is x itself for an image that is
            misclassified as it is, and for one that no adversarial example was found for.

        Raises:
            DataError: For x outside [0, 1] or not finite, labels without a logit, or shapes that do not fit.
            ModelError, NonFiniteError: When the model returns no logits (n, k), or its loss or gradient is not finite.
        """
        return self._run(model, x, y).points

    @torch.inference_mode(False)
    def distances(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Distances (n,) of the nearest adversarial examples in the norm of the attack, inf where none was found.

        Arguments and errors as for a call.
        """
        return self._run(model, x, y).distances

    def _run(self, model: Model, x: Tensor, y: Tensor) -> "Closest":
        x, y = check_batch(x, y)
        closest = Closest(x, self.norm)
        with attack_mode(model, self.bn), torch.no_grad():
            net = CheckedModel(model, y)
            closest.update(x, finite_logits(net(x)).argmax(dim=1) != y)
            self._search(net, x, y, closest)
        return closest

    def _search(self, net: CheckedModel, x: Tensor, y: Tensor, closest: "Closest") -> None:
        """Gives the adversarial points that it finds to `closest`."""
        raise NotImplementedError


class Closest:
    """The nearest adversarial example of every image so far.

    Args:
        x: (n, ...) the images.
        norm: "linf" or "l2".

    Attributes:
        points: (n, ...) the nearest ones, x where there is none yet.
        distances: (n,) their distances, inf where there is none.
    """

    def __init__(self, x: Tensor, norm: str):
        self.x, self.norm, self.points = x, norm, x.clone()
        self.distances = x.new_full((len(x),), math.inf)

    def update(self, points: Tensor, adversarial: Tensor) -> None:
        """Takes points (n, ...) where they are adversarial, (n,) bool, and no further than the nearest so far."""
        distances = norms_of(points - self.x, ORDERS[self.norm])
        better = adversarial & (distances <= self.distances)
        self.points = torch.where(per_example(better, points), points, self.points)
        self.distances = torch.where(better, distances, self.distances)


class _MinimumNormAttack(Protocol):
    norm: str

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor: ...


class Within:
    """An attack in a threat model, of an attack that minimises the distance: what it finds within the ball counts.

    Args:
        attack: The attack.
        threat: The threat model, whose norm is that of the attack.

    Raises:
        ConfigError: For another norm.
    """

    def __init__(self, attack: _MinimumNormAttack, threat: ThreatModel):
        if attack.norm != threat.norm:
            raise ConfigError(
                f"{type(attack).__name__} minimises the distance in {attack.norm}, and the threat model is {threat}; "
                f"give a threat model in {attack.norm}"
            )
        self.attack, self.threat = attack, threat

    @property
    def bn(self) -> str:
        """Mode of the model during the attack."""
        return self.attack.bn  # type: ignore[attr-defined]

    @bn.setter
    def bn(self, mode: str) -> None:
        self.attack.bn = mode  # type: ignore[attr-defined]

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """The adversarial examples (n, ...) within the ball, x where there is none; arguments as for the attack."""
        x_adv = self.attack(model, x, y)
        # An example on the sphere may be outside by the rounding of a norm.
        near = norms_of(x_adv - x, ORDERS[self.threat.norm]) <= self.threat.eps * (1 + 1e-6)
        return torch.where(per_example(near, x), x_adv, x)


def norms_of(t: Tensor, order: float) -> Tensor:
    """Norms (n,) of the examples of t (n, ...)."""
    return torch.linalg.vector_norm(t.flatten(1), ord=order, dim=1)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,), shaped to broadcast against `like` (n, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def largest_norms(x: Tensor, order: float) -> Tensor:
    """Norms (n,) of the largest perturbation of each image x (n, ...) within [0, 1]."""
    return norms_of(torch.maximum(x, 1 - x), order)


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """A value that falls from `first` at step 0 to `last` at `steps` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
