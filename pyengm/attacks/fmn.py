"""FMN (Pintor et al. 2021): the nearest adversarial example in L-infinity or L2, in a ball whose radius adapts."""

import torch
from torch import Tensor

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import margin
from pyengm.attacks.minimum_norm import (
    DUAL_ORDERS,
    ORDERS,
    Closest,
    MinimumNorm,
    cosine,
    largest_norms,
    norms_of,
    per_example,
)
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_finite
from pyengm.errors import ConfigError

LAST_GAMMA = 0.001
ACROSS = 1 + 1e-6  # factor of the estimated distance: at the distance itself the margin of a linear model is 0


class FMN(MinimumNorm):
    """The fast minimum-norm attack (FMN).

    Every step moves along the gradient of the margin, divided by its L2 norm, and is projected to the ball of radius r
    around x. Before an example is adversarial for the first time, r is the estimate of its distance to the boundary
    from the linearised margin; afterwards r becomes (1 - gamma) r, or the distance of the nearest adversarial example
    if that is smaller, where the point was adversarial, and (1 + gamma) r where it was not.

    Args:
        norm: "linf" or "l2".
        steps: Number of forward-backward passes.
        step_size: Size of the first step in L2, in pixel units; it falls to a hundredth along a cosine.
        gamma: The first relative change of the radius; it falls to 0.001 along a cosine.
        bn: As for `MinimumNorm`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", Alg. 1.
    """

    def __init__(
        self, norm: str = "linf", steps: int = 100, *, step_size: float = 1.0, gamma: float = 0.05, bn: str = "eval"
    ):
        super().__init__(norm, steps, bn)
        if not 0 < step_size < float("inf"):
            raise ConfigError(f"step_size is {step_size}; expected a finite number above 0 in pixel units, such as 1")
        if not 0 < gamma < 1:
            raise ConfigError(f"gamma is {gamma}; expected a number above 0 and below 1, such as 0.05")
        self.step_size, self.gamma = step_size, gamma

    def _search(self, net: CheckedModel, x: Tensor, y: Tensor, closest: Closest) -> None:
        order, dual = ORDERS[self.norm], DUAL_ORDERS[self.norm]
        delta = torch.zeros_like(x)
        radius, largest = x.new_full((len(x),), torch.inf), largest_norms(x, order)
        for step in range(self.steps):
            grad, margins, logits = input_grad(net, x + delta, margin, y)
            check_finite(grad, margins)
            adversarial = logits.argmax(dim=1) != y
            closest.update(x + delta, adversarial)
            slope = norms_of(grad, dual)
            # Without a slope the boundary is infinitely far.
            estimate = norms_of(delta, order) + torch.where(slope > 0, margins.to(slope).abs() / slope, torch.inf)
            estimate = estimate * ACROSS
            gamma = cosine(step, self.steps, self.gamma, LAST_GAMMA)
            smaller = torch.minimum(radius * (1 - gamma), closest.distances)
            larger = torch.where(closest.distances.isfinite(), radius * (1 + gamma), estimate)
            radius = torch.minimum(torch.where(adversarial, smaller, larger), largest)
            delta = delta + cosine(step, self.steps, self.step_size, self.step_size / 100) * unit(grad)
            delta = (x + self._project(delta, radius)).clamp(0, 1) - x

    def _project(self, delta: Tensor, radius: Tensor) -> Tensor:
        bound = per_example(radius, delta)
        if self.norm == "linf":
            return delta.clamp(-bound, bound)
        norms = per_example(norms_of(delta, 2), delta)
        return delta * (bound / norms.where(norms > 0, 1.0)).clamp(max=1)
