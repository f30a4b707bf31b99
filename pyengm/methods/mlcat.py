"""MLCAT: adversarial training with a least loss for every example (Yu et al. 2022)."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.awp import AWP
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.moved_weights import joint_norm
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils import foreach

RECIPE = {"model": "preact_resnet18", "epochs": 200, "milestones": (100, 150)}
SMALLEST = 1e-6  # losses below it are rounding errors, and are raised by the factor of this one


def check_least(least: float) -> None:
    """Raises ConfigError for a least loss that is not a number above 0."""
    if not (math.isfinite(least) and least > 0):
        raise ConfigError(f"least_loss is {least}; expected a number > 0 in units of the loss, such as 1.5")


@register_method
class MLCAT(AttackMethod):
    """L_i = CE_i max(least_loss / sg(CE_i), 1), CE_i the cross-entropy on PGD's x'_i, sg no gradient (loss scaling).

    Examples of small loss, which robust overfitting fits, get the gradient of an example whose loss is least_loss.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        least_loss: The least loss of an example.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".
        as_published: As in the authors' code, which has no sg, L_i = max(CE_i, least_loss): examples of smaller loss
            have no gradient.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Yu et al. 2022, "Understanding Robust Overfitting of Adversarial Training and Beyond", MLCAT_LS; numbers from
        the authors' code.
    """

    info = MethodInfo(
        name="mlcat",
        title="small losses scaled up",
        reference="Yu et al. 2022",
        passes=PassCounts(1, 1, 1, per_step=True),
        recipe=RECIPE,
        is_pgd=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        least_loss: float = 1.5,
        norm: str = "linf",
        bn: str = "train",
        as_published: bool = False,
    ):
        check_least(least_loss)
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.least_loss, self.as_published = self.attack.threat, least_loss, as_published

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, key=key)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        logits = logits_of(model, x_adv)
        losses = self.cross_entropy(logits, y)
        if self.as_published:
            losses = losses.clamp(min=self.least_loss)
        else:
            losses = losses * (self.least_loss / losses.detach().clamp(min=SMALLEST)).clamp(min=1)
        return StepOutput(losses, x_adv, logits)


def _short_recipe(run: ShortRun) -> dict[str, tuple[str, ...]]:
    """As for `PGDATAWP`."""
    return {"method_options": (f"warmup={run.epochs // 4}",)}


@register_method
class MLCATWP(AWP):
    """The losses L_i of PGD adversarial training at the weights w + v, v from ascent on the small ones of them.

    With I the examples of L_i < least_loss, v = 0 and d = 0 at first, `ascents` times d <- d + the gradient of
    sum_{i in I} L_i at w + v, and v = gamma ||w|| d / ||d||, norms over all convolutions and linear layers together.
    Otherwise as `AWP`.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        least_loss: The loss below which examples take part in the ascent.
        ascents: Steps of the ascent.
        gamma: Norm of the weight perturbation relative to that of the weights, >= 0.
        warmup: Epochs at the start without weight perturbation.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Yu et al. 2022, as for `MLCAT`, MLCAT_WP; numbers from the authors' code.
    """

    info = MethodInfo(
        name="mlcat_wp",
        title="weight perturbations that raise small losses",
        reference="Yu et al. 2022",
        passes=PassCounts(11, 11, 11, per_step=True),
        recipe=RECIPE,
        short_recipe=_short_recipe,
        epoch_options={"warmup": 0},
        is_pgd=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        least_loss: float = 1.5,
        ascents: int = 10,
        gamma: float = 0.01,
        warmup: int = 0,
        norm: str = "linf",
        bn: str = "train",
    ):
        super().__init__(PGDAT(eps, step_size, steps, norm=norm, bn=bn), gamma, warmup=warmup)
        check_least(least_loss)
        if ascents < 1:
            raise ConfigError(f"ascents is {ascents}; expected a number of steps, 1 or more")
        self.least_loss, self.ascents = least_loss, ascents

    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        weights = self._weights(model)
        before = [w.detach().clone() for w in weights]
        total, moves = ([torch.zeros_like(w) for w in before] for _ in range(2))
        size = joint_norm(before)
        try:
            for _ in range(self.ascents):
                foreach.add_(total, self._gradient(model, weights, x, x_adv, y, below=self.least_loss))
                scale = self.gamma * size / self._divisor(joint_norm(total))
                moves = [d * scale for d in total]
                _set(weights, [w + v for w, v in zip(before, moves, strict=True)])
        finally:
            _set(weights, before)
        return weights, moves


@torch.no_grad()
def _set(weights: list[Tensor], values: list[Tensor]) -> None:
    foreach.copy_(weights, values)
    torch.clear_autocast_cache()  # it may hold the previous weights in 16 bits
