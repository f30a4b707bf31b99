"""Attacks and losses on the cross-entropy with a relaxation, which compares the outputs on two images."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_bn
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.noise import random_signs
from pyengm.ops import Key


class RelaxedAttack(AttackMethod):
    """L_i = CE(f(x_i), y_i) + R_i(f(X), f(X')), x' from steps up the same losses, with f(X) constant.

    x' starts at a random corner of the ball of radius eps / 2. With one step, R enters the attack in every other batch
    of an epoch, from the second one on, and f(X) in it uses the batch's statistics, whatever the mode of the attack.
    With more steps, R enters every other step, from the first one on, and f(X) is in the mode of the attack.

    Args:
        threat: The threat model.
        step_size: Step size, in pixel units; eps unless given.
        steps: Steps of the attack.
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".
        as_published: With one step, the clean images update the running statistics of batch norm once more before every
            attack.

    Raises:
        ConfigError: A value or name is out of range.
    """

    def __init__(self, threat: ThreatModel, step_size: float | None, steps: int, *, bn: str, as_published: bool):
        step_size = threat.eps if step_size is None else step_size
        if not (math.isfinite(step_size) and step_size >= 0) or steps < 1:
            raise ConfigError(
                f"step_size and steps are {step_size} and {steps}; expected a finite step >= 0, 1 or more times"
            )
        check_bn(bn)
        self.threat, self.step_size, self.steps, self.bn = threat, step_size, steps, bn
        self.as_published = as_published
        self.epoch = self.batches = 0  # batches: of this epoch so far
        self.epoch_is_given = False  # by start_epoch

    @property
    @abstractmethod
    def weight(self) -> float:
        """The weight of R in the current epoch."""

    @abstractmethod
    def relaxation(self, natural: Tensor, logits: Tensor) -> Tensor:
        """R (n,), weight included, for logits (n, k) of the images and of the adversarial images."""

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.batches, self.epoch_is_given = epoch, 0, True

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        if key is not None and key.epoch != self.epoch and not self.epoch_is_given:
            self.epoch, self.batches = key.epoch, 0
        return super().key_for(x, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = check_batch(x, y, soft=True)
        check_extras(x, None, key, None)
        x = x.detach()
        target = self._target(model, x)
        self.batches += 1
        x_adv = self.threat.project_(self._start(x, key).add_(x), x)
        with attack_mode(model, self.bn), torch.no_grad():
            for k in range(self.steps):
                losses_of = self._attack_losses(y, None if self.steps > 1 and k % 2 else target)
                grad, losses, _ = input_grad(CheckedModel(model, y), x_adv, losses_of)
                check_finite(losses, grad)
                self.threat.step_(x_adv, grad, x, self.step_size)
        return x_adv

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        natural, logits = logits_of(model, x), logits_of(model, x_adv)
        losses = self.cross_entropy(natural, y) + self.relaxation(natural, logits)
        return StepOutput(losses, x_adv, logits)

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches": self.batches}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.batches, self.epoch_is_given = state["epoch"], state["batches"], True

    def _start(self, x: Tensor, key: Key) -> Tensor:
        radius = self.threat.eps / 2
        if self.threat.norm == "l2":
            radius /= math.sqrt(x[0].numel())
        return random_signs(x, key).mul_(radius)

    def _target(self, model: nn.Module, x: Tensor) -> Tensor | None:
        """f(X) in the losses of the attack, or None where the attack is on the cross-entropy alone."""
        needed = self.weight > 0 and (self.steps > 1 or self.batches % 2 == 1)
        counted = self.as_published and self.steps == 1  # in the running statistics
        if not (needed or counted):
            return None
        mode = self.bn if self.steps > 1 else "train" if counted else "batch_stats"
        with attack_mode(model, mode), torch.no_grad():
            logits = logits_of(model, x)
        return logits if needed else None

    def _attack_losses(self, y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
        if target is None:
            return lambda logits: cross_entropy(logits, y)
        return lambda logits: cross_entropy(logits, y) + self.relaxation(target, logits)
