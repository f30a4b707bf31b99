"""PGD adversarial training (Madry et al. 2018)."""

from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.data import Transform
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class PGDAT(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD on the cross-entropy with a random start.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" as in Rice et al. 2020, or
            "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Madry et al. 2018, Eq. 2.1 and 2.2.
    """

    info = MethodInfo(
        name="pgd_at",
        title="PGD adversarial training",
        reference="Madry et al. 2018",
        passes=PassCounts(1, 1, 1, per_step=True),
        optimizer=None,
        is_pgd=True,
    )

    def __init__(
        self, eps: float, step_size: float | None = None, steps: int = 10, *, norm: str = "linf", bn: str = "eval"
    ):
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat = self.attack.threat

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, key=key)
