"""Threat models: the images that an adversary may choose, and steps and projections within them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.ops import Key, Purpose, pgd_l2_step_, pgd_linf_step_, philox_normal, philox_uniform, row_norms
from pyengm.utils.pixels import format_pixels

THREAT_NORMS = ("linf", "l2")


@dataclass(frozen=True)
class ThreatModel:
    """All images within distance eps of x in a norm, and within [0, 1].

    Args:
        norm: "linf" or "l2" (Euclidean over all channels and pixels).
        eps: radius in pixel units, >= 0 (8/255, say), and at most 1 in L-infinity.

    Raises:
        ConfigError: the norm is unknown or the radius is out of range.

    Example:
        >>> print(pyengm.attacks.ThreatModel("linf", 8 / 255))
        L-infinity, eps = 8/255
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in THREAT_NORMS:
            raise ConfigError(f"threat norm is {self.norm!r}; known norms: {', '.join(THREAT_NORMS)}")
        if not (isinstance(self.eps, Real) and math.isfinite(self.eps) and self.eps >= 0):
            raise ConfigError(f"eps is {self.eps!r}; expected a finite number >= 0 in pixel units, such as 8/255")
        if self.norm == "linf" and self.eps > 1:
            meant = f"; {self.eps:g}/255?" if self.eps <= 255 else ""
            raise ConfigError(f"eps is {self.eps:g}, more than all of a pixel in [0, 1]; expected at most 1{meant}")

    def __str__(self) -> str:
        return f"{'L-infinity' if self.norm == 'linf' else 'L2'}, eps = {format_pixels(self.eps)}"

    def step_(
        self, x_adv: Tensor, grad: Tensor, x: Tensor, step: float | Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Moves x_adv up the gradient and projects it back into the threat model around x, in place.

        The direction is the sign of the gradient in L-infinity, and the gradient divided by its norm in L2.

        Args:
            x_adv: iterates (n, ...), contiguous or channels_last.
            grad: gradients (n, ...).
            x: images (n, ...) in [0, 1].
            step: step size in pixel units, one for all examples or (n,).
            mask: (n,) bool, the examples that move; all by default.

        Returns:
            x_adv.
        """
        move = pgd_linf_step_ if self.norm == "linf" else pgd_l2_step_
        return move(x_adv, grad, x, step, self.eps, mask=mask)

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Moves x_adv (n, ...) to the nearest point of the eps-ball around x, then of [0, 1], in place."""
        return self.step_(x_adv, x, x, 0.0)

    def uniform(self, like: Tensor, key: Key, *, purpose: Purpose = Purpose.START, draw: int = 0) -> Tensor:
        """Random perturbations, uniform in the eps-ball.

        Args:
            like: tensor (n, ...) with the shape and type of the result.
            key: key of the random numbers, for n examples.
            purpose: what they are drawn for; different purposes are independent.
            draw: number of the draw for this purpose, 0 to 2**12 - 1.

        Returns:
            Perturbations (n, ...) in pixel units.
        """

        def random(draws: Callable[..., Tensor], shape: tuple[int, ...], purpose: Purpose, draw: int) -> Tensor:
            values = draws(key.index, shape, seed=key.seed, epoch=key.epoch, purpose=purpose, draw=draw)
            return values.to(like.dtype)

        shape = tuple(like.shape[1:])
        if self.norm == "linf":
            return random(philox_uniform, shape, purpose, draw).mul_(2).sub_(1).mul_(self.eps)
        direction = unit(random(philox_normal, shape, purpose, draw))
        # Points of different purposes have independent radii.
        radius_draw = draw + ((purpose - Purpose.START) % 2**4 << 12)
        radius = random(philox_uniform, (1,) * len(shape), Purpose.RADIUS, radius_draw)
        return direction.mul_(radius.pow_(1 / like[0].numel())).mul_(self.eps)


def unit(t: Tensor) -> Tensor:
    """t (n, ...) divided by its L2 norm per example; an example of zeros stays zero."""
    norms = row_norms(t).view(-1, *[1] * (t.dim() - 1))
    return t / norms.where(norms > 0, 1.0)
