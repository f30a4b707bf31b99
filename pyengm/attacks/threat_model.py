"""What an adversary may do to an image, and the steps that stay within it."""

import math
from dataclasses import dataclass

from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.ops import Key, Purpose, pgd_l2_step_, pgd_linf_step_, philox_normal, philox_uniform, row_norms

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class ThreatModel:
    """All images within distance eps of x in a norm, and within [0, 1].

    norm: "linf" or "l2" (Euclidean over all channels and pixels). eps: in pixel units, >= 0 (8/255, say).
    Raises ConfigError for another norm or radius.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"threat norm is {self.norm!r}; known norms: {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ConfigError(f"eps is {self.eps}; expected a finite number >= 0 in pixel units, such as 8/255")

    def __str__(self) -> str:
        return f"{'L-infinity' if self.norm == 'linf' else 'L2'}, eps = {self.eps:.4g}"

    def step_(
        self, x_adv: Tensor, grad: Tensor, x: Tensor, step: float | Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Moves x_adv (n, ...) up the gradient by `step`, then back into the threat model around x; in place.

        Along the sign of the gradient in L-infinity, along the gradient over its norm in L2. step: in pixel units, a
        number or one per example (n,). mask: (n,) bool, the examples that move.
        """
        move = pgd_linf_step_ if self.norm == "linf" else pgd_l2_step_
        return move(x_adv, grad, x, step, self.eps, mask=mask)

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the eps-ball around x, then of [0, 1]; in place."""
        return self.step_(x_adv, x, x, 0.0)

    def uniform(self, like: Tensor, key: Key, *, purpose: Purpose = Purpose.START, draw: int = 0) -> Tensor:
        """Perturbations (n, ...) uniform in the eps-ball, from the numbers of `key`; shape and type as `like`."""
        named = {"seed": key.seed, "epoch": key.epoch, "draw": draw}
        if self.norm == "linf":
            uniform = philox_uniform(key.index, like.shape[1:], purpose=purpose, **named)
            return uniform.to(like.dtype).mul_(2).sub_(1).mul_(self.eps)
        direction = unit(philox_normal(key.index, like.shape[1:], purpose=purpose, **named).to(like.dtype))
        named["draw"] += (purpose - Purpose.START) % 2**4 << 12  # points of different purposes have radii of their own
        radius = philox_uniform(key.index, (1,) * (like.dim() - 1), purpose=Purpose.RADIUS, **named).to(like.dtype)
        return direction.mul_(radius.pow_(1 / like[0].numel())).mul_(self.eps)


def unit(t: Tensor) -> Tensor:
    """t (n, ...) divided by its L2 norm per example; an example of zeros stays zero."""
    norms = row_norms(t).view(-1, *[1] * (t.dim() - 1))
    return t / norms.where(norms > 0, 1.0)
