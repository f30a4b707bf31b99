"""PGD adversarial training (Madry et al. 2018)."""

from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.methods.base import Method, Outcome
from pyengm.ops import Key


class PGDAT(Method):
    """L_i = CE(f(x'_i), y_i), x' from PGD on the cross-entropy with a random start.

    eps, step: in pixel units. steps: of PGD. norm: "linf" or "l2". bn: batch-norm mode of the attack, "eval" as in
    the authors' code; "train" as in Rice et al. 2020. Source: Madry et al. 2018, Eq. 2.1 and 2.2.
    """

    def __init__(self, eps: float, step: float, steps: int = 10, *, norm: str = "linf", bn: str = "eval"):
        self.attack = PGD(eps, step, steps, norm=norm, bn=bn)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, key: Key) -> Outcome:
        # New memory for each batch: the graph of the losses needs x_adv until its backward pass.
        x_adv = self.as_input(self.attack(model, x, y, key=key))
        logits = model(x_adv)
        return Outcome(F.cross_entropy(logits, y, reduction="none"), x_adv, logits)
