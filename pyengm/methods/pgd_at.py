"""PGD adversarial training (Madry et al. 2018)."""

from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.data import Transform
from pyengm.methods.base import AttackMethod
from pyengm.ops import Key


class PGDAT(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD on the cross-entropy with a random start.

    eps, step_size: in pixel units; step_size is eps / 4 unless given. steps: of PGD. norm: "linf" or "l2". bn: batch-norm mode
    of the attack, "eval" as in the authors' code; "train" as in Rice et al. 2020. Source: Madry et al. 2018, Eq. 2.1
    and 2.2.
    """

    def __init__(
        self, eps: float, step_size: float | None = None, steps: int = 10, *, norm: str = "linf", bn: str = "eval"
    ):
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat = self.attack.threat

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, key=key)
