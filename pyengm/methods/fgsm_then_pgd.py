"""Weak attacks early, strong ones later, in their plainest form (Wang et al. 2019)."""

from torch import Tensor, nn

from pyengm.attacks import FGSM, PGD
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.dynamic import EpochAttack
from pyengm.ops import Key


class FGSMThenPGD(EpochAttack):
    """L_i = CE(f(x'_i), y_i), x' from FGSM in the first epochs, from PGD with a random start in the later ones.

    FGSM takes one step of size eps from the image itself.
    eps, step_size: in pixel units; step, of PGD, is eps / 4 unless given. steps: of PGD. fgsm_epochs: how many epochs are
    with FGSM. norm: "linf" or "l2". bn: batch-norm mode of both attacks; the paper does not say which, and "eval" is
    that of the authors' code for `Dynamic`.
    Raises ConfigError for numbers and names out of range. Source: Wang et al. 2019, Sec. 3.2, "FGSM-PGD".
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        fgsm_epochs: int = 20,
        norm: str = "linf",
        bn: str = "eval",
    ):
        if fgsm_epochs < 0:
            raise ConfigError(f"fgsm_epochs is {fgsm_epochs}; expected a number of epochs, 0 or more")
        self.weak = FGSM(eps, norm=norm, bn=bn)
        self.strong = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.fgsm_epochs = self.strong.threat, fgsm_epochs

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        attack = self.weak if key.epoch < self.fgsm_epochs else self.strong
        return attack(model, x, y, key=key)
