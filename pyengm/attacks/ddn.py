"""DDN (Rony et al. 2019): the nearest adversarial example in L2, with direction and norm decoupled."""

import torch
from torch import Tensor

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.minimum_norm import Closest, MinimumNorm, cosine, largest_norms, norms_of, per_example
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_finite
from pyengm.errors import ConfigError


class DDN(MinimumNorm):
    """The decoupled direction and norm attack (DDN).

    Every step moves along the gradient of the cross-entropy, divided by its norm, and then to the sphere of radius r
    around x. The radius becomes (1 - gamma) r where the point was adversarial, and (1 + gamma) r where it was not.

    Args:
        steps: Number of forward-backward passes.
        radius: The first radius r, in pixel units.
        gamma: The relative change of the radius, above 0 and below 1.
        bn: As for `MinimumNorm`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Rony et al. 2019, "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and
        Defenses", Alg. 1; the size of the steps falls from 1 to 0.01 along a cosine, as in Sec. 4.
    """

    def __init__(self, steps: int = 100, *, radius: float = 1.0, gamma: float = 0.05, bn: str = "eval"):
        super().__init__("l2", steps, bn)
        if not 0 < radius < float("inf"):
            raise ConfigError(f"radius is {radius}; expected a finite number above 0 in pixel units, such as 1")
        if not 0 < gamma < 1:
            raise ConfigError(f"gamma is {gamma}; expected a number above 0 and below 1, such as 0.05")
        self.radius, self.gamma = radius, gamma

    def _search(self, net: CheckedModel, x: Tensor, y: Tensor, closest: Closest) -> None:
        delta = torch.zeros_like(x)
        radius, largest = x.new_full((len(x),), self.radius), largest_norms(x, 2)
        for step in range(self.steps):
            grad, losses, logits = input_grad(net, x + delta, cross_entropy, y)
            check_finite(grad, losses)
            adversarial = logits.argmax(dim=1) != y
            closest.update(x + delta, adversarial)
            delta = delta + cosine(step, self.steps, 1.0, 0.01) * unit(grad)
            radius = torch.minimum(radius * (1 + self.gamma * (1 - 2 * adversarial.to(radius))), largest)
            norms = norms_of(delta, 2)
            delta = delta * per_example(radius / norms.where(norms > 0, 1.0), delta)
            delta = (x + delta).clamp(0, 1) - x
