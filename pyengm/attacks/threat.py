"""What an adversary may do to a picture."""

import math
from dataclasses import dataclass

from pyengm.errors import ConfigError

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Threat:
    """All pictures within distance eps of x in a norm, and within [0, 1].

    norm: "linf" or "l2" (Euclidean over all channels and pixels). eps: in pixel units, >= 0 (8/255, say).
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
