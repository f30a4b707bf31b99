"""FGSM in the first epochs, PGD in the later ones (Wang et al. 2019)."""

from torch import Tensor, nn

from pyengm.attacks import FGSM, PGD
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.dynamic import RECIPE, EpochAttack
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class FGSMThenPGD(EpochAttack):
    """L_i = CE(f(x'_i), y_i), x' from FGSM in the first epochs, from PGD with a random start in the later ones.

    FGSM takes one step of size eps from the image itself.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        fgsm_epochs: Number of epochs with FGSM.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of both attacks: "eval", "train" or "batch_stats"; the paper does not give it, and "eval" is
            that of the authors' code for `Dynamic`.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wang et al. 2019, Sec. 3.2, "FGSM-PGD".
    """

    info = MethodInfo(
        name="fgsm_then_pgd",
        title="FGSM for 20 epochs, then PGD",
        reference="Wang et al. 2019",
        passes=PassCounts(1, 1, 1, per_step=True, steps=1, remark="{}, later 11 + 11 + 1"),
        recipe=RECIPE,
        short_recipe=lambda run: {"method_options": (f"fgsm_epochs={run.epochs // 6}",)},
        epoch_options={"fgsm_epochs": 0},
    )

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
