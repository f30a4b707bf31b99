"""ATES: attacks that stop at a probability gap, which grows during the run (Sitawarin et al. 2020)."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.logits import CheckedModel
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import checked
from pyengm.methods.dynamic import EpochAttack
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.methods.stopped_attack import ascend_until_stopped
from pyengm.ops import Key


@register_method
class ATES(EpochAttack):
    """L_i = CE(f(x'_i), y_i), x' from PGD that stops each example once it fools the model by a gap that grows.

    An example stops before a step in which the largest probability of the other classes exceeds that of its own by more
    than the gap. The gap is `first_gap` in the epochs before `begin`, grows by the same amount in every epoch from
    `begin` on, counted from 0, and is `last_gap` from epoch `end` - 1 on. A gap of 0 stops at the first
    misclassification, one of 1 never.

    On a GPU the host waits for the device at every step of the attack, to learn which examples are left.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Most steps that an example takes.
        epochs: Length of the run in epochs.
        first_gap: First gap, from -1 to 1.
        last_gap: Last gap, from -1 to 1.
        begin: First epoch in which the gap grows; unless given that at 30 % of the run, the authors' 30 of 100.
        end: Epoch after the last in which it grows; unless given that at 70 % of the run, the authors' 70 of 100.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats"; in the other modes
            stopped examples stay in the batch.

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Sitawarin et al. 2020, "Improving Adversarial Robustness Through Progressive Hardening" (arXiv 2003.09347); the
        rule and all numbers from the training code and configuration that its first author published.
    """

    info = MethodInfo(
        name="ates",
        title="PGD stopped at a probability gap that grows",
        reference="Sitawarin et al. 2020",
        passes=PassCounts(1, 1, 1, per_step=True, remark="at most {}"),
        recipe={"lr": 0.05, "epochs": 100, "milestones": (40, 60, 80)},
        epoch_options={"begin": 0, "end": 1},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        epochs: int,
        first_gap: float = 0.0,
        last_gap: float = 0.4,
        begin: float | None = None,
        end: float | None = None,
        norm: str = "linf",
        bn: str = "eval",
    ):
        for name, gap in (("first_gap", first_gap), ("last_gap", last_gap)):
            if not -1 <= gap <= 1:
                raise ConfigError(f"{name} is {gap}; expected a difference of probabilities, from -1 to 1")
        begin, end = 0.3 * epochs if begin is None else begin, 0.7 * epochs if end is None else end
        if epochs < 1 or not (0 <= begin < end and math.isfinite(end)):
            raise ConfigError(f"epochs, begin and end are {epochs}, {begin} and {end}; expected 0 <= begin < end")
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.first_gap, self.last_gap = self.attack.threat, first_gap, last_gap
        self.begin, self.end = begin, end

    def gap(self, epoch: int) -> float:
        """The gap in that epoch, counted from 0."""
        share = min(max((epoch + 1 - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.first_gap + (self.last_gap - self.first_gap) * share

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = checked(x, y, key)
        own = y.argmax(dim=1) if y.is_floating_point() else y
        gap = self.gap(key.epoch)

        def stops(logits: Tensor, rows: Tensor) -> Tensor:
            probabilities = logits.softmax(dim=1)
            of_own = probabilities.gather(1, own[rows, None])
            others = probabilities.scatter(1, own[rows, None], -math.inf).amax(dim=1, keepdim=True)
            return (others - of_own).flatten() > gap

        x_adv = self.threat.project_(x + self.threat.uniform(x, key), x)
        with attack_mode(model, self.attack.bn), torch.no_grad():
            ascend_until_stopped(self.attack, CheckedModel(model, y), x_adv, x, y, stops)
        return x_adv
