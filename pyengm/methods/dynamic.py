"""Dynamic adversarial training: attacks that converge better and better (Wang et al. 2019)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import FGSM, ThreatModel, attack_mode
from pyengm.attacks.fosc import FOSCPGD, FOSCRecord, fosc_of
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key

# Of Wang et al. 2019, for CIFAR-10
RECIPE = {"lr": 0.01, "weight_decay": 1e-4, "epochs": 120, "milestones": (60, 100)}
MNIST_RECIPE = {"weight_decay": 1e-4}  # for MNIST


class EpochAttack(AttackMethod):
    """An attack that depends on the epoch: that of the key, and of `start_epoch` for anonymous images.

    Attributes:
        epoch: The epoch of the last batch, counted from 0.
    """

    epoch = 0

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        key = replace(super().key_for(x, None), epoch=self.epoch) if key is None else key
        self.epoch = key.epoch
        return key

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch = epoch

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]


@register_method
class Dynamic(EpochAttack):
    """L_i = CE(f(x'_i), y_i), x' from PGD that stops each example once its FOSC is at most c_t.

    In epoch t = 0, 1, ... c_t = max(c_max (1 - t / decay_epochs), 0): weak examples first, strong ones later. The
    first-order stationary condition (FOSC) eps ||g||_1 - <x' - x, g> takes no pass of its own: the gradient g is that
    of the next step.

    On a GPU the host waits for the device at every step of the attack, to learn which examples are left.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Most steps that an example takes.
        epochs: Length of the run in epochs.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats"; in the other modes
            stopped examples stay in the batch.
        c_max: First threshold, in units of the loss; `c_max_from` estimates it.
        decay_epochs: Epochs until the threshold is 0; 5/6 of the run unless given (the paper's 100 of 120). The recipe
            for MNIST has the paper's 40 of 50.
        as_published: As in the authors' code, the FOSC measures displacements from the random start, not from the
            image, the start is not clipped to [0, 1], and from epoch 1 on L_i = sg(l_i) CE(f(x'_i), y_i), with l_i the
            cross-entropy of x'_i in the mode bn and sg no gradient, at the price of one more forward pass.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wang et al. 2019, Sec. 4.1, Alg. 1.
    """

    info = MethodInfo(
        name="dynamic",
        title="PGD stopped by its convergence, FOSC",
        reference="Wang et al. 2019",
        passes=PassCounts(1, 1, 1, per_step=True, remark="at most {}"),
        recipe=RECIPE,
        mnist_recipe=lambda run: {**MNIST_RECIPE, "method_options": (f"decay_epochs={run.epochs * 40 / 50:g}",)},
        epoch_options={"decay_epochs": 1},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        epochs: int,
        norm: str = "linf",
        bn: str = "eval",
        c_max: float = 0.5,
        decay_epochs: float | None = None,
        as_published: bool = False,
    ):
        decay_epochs = epochs * 100 / 120 if decay_epochs is None else decay_epochs
        if epochs < 1 or not decay_epochs > 0:
            raise ConfigError(f"epochs and decay_epochs are {epochs} and {decay_epochs}; expected numbers above 0")
        if not (math.isfinite(c_max) and c_max >= 0):
            raise ConfigError(f"c_max is {c_max}; expected a finite number >= 0 in units of the loss, such as 0.5")
        self.attack = FOSCPGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.as_published = self.attack.threat, as_published
        self.c_max, self.decay_epochs = c_max, decay_epochs
        self._record: FOSCRecord | None = None  # of the last attack, until its outcome

    def threshold(self, epoch: int) -> float:
        """c_t of epoch t, counted from 0."""
        return max(self.c_max * (1 - epoch / self.decay_epochs), 0.0)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        start = x + self.threat.uniform(x, key) if self.as_published else None
        record = self._record = FOSCRecord.zeros(x)
        threshold = self.threshold(key.epoch)
        return self.attack(model, x, y, threshold=threshold, start=start, origin=start, key=key, record=record)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        weights, record, self._record = None, self._record, None
        if self.as_published and self.epoch > 0:
            with attack_mode(model, self.attack.bn), torch.no_grad():
                weights = cross_entropy(logits_of(model, x_adv, y), y)
        x_adv = self.as_input(x_adv)
        logits = logits_of(model, x_adv)
        losses = self.cross_entropy(logits, y)
        return StepOutput(losses if weights is None else weights * losses, x_adv, logits, fosc=record)


def c_max_from(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str = "linf", bn: str = "eval") -> float:
    """An estimate of c_max for `Dynamic`: the mean first-order stationary condition (FOSC) of FGSM examples of a batch.

    Args:
        model: The model to attack.
        x: (n, ...) images in [0, 1].
        y: (n,) int64 labels.
        eps: Radius of the threat model, in pixel units.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".

    Returns:
        The estimate, in units of the loss.

    Raises:
        ConfigError: A value or name is out of range; and what `PGD` raises.

    References:
        Wang et al. 2019, Sec. 4.1.
    """
    x_adv = FGSM(eps, norm=norm, bn=bn)(model, x, y)
    return fosc_of(model, x_adv, x, y, ThreatModel(norm, eps), bn=bn).mean().item()
