"""NuAT: nuclear-norm adversarial training (Sriramanan et al. 2021)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import BN_MODES, ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import random_signs
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class NuAT(AttackMethod):
    """L_i = CE(f(x_i), y_i) + lambda (n / divisor) <(U V^T)_i, D_i>, D = f(X) - f(X') = U S V^T, U and V constant.

    The mean of the second term is lambda ||D||_* / divisor, with the nuclear norm of the (n, k) matrix of logit
    differences, and so is its gradient: the examples of a batch are not independent. x' starts at a random corner of
    the ball of radius eps / 2 and takes steps up the same losses, with f(X) constant.
    steps = 1 (NuAT): the nuclear norm enters the attack in every other batch of an epoch, from the second one on, and
    f(X) in it uses the batch's statistics, whatever the mode of the attack. steps > 1 (NuAT2): it enters every other
    step, from the first one on, and f(X) is in the mode of the attack.
    lambda rises with the epochs in equal parts from 0 to max_lambda, which it reaches at epoch E - 10 of E (NuAT2: not
    before the end); the epoch is that of `start_epoch`, or else of the key.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        steps: Steps of the attack.
        epochs: E, the length of the run in epochs.
        norm: Norm of the threat model, "linf" or "l2" (where the corner, too, has an L2 norm of eps / 2).
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".
        max_lambda: Last lambda; 4.5 in the authors' code, and 4 for NuAT2.
        divisor: Divisor of the nuclear norm of any batch: 64, the authors' batch size, also for their short last batch,
            or None for each batch's own n.
        as_published: As in the authors' code of NuAT, the clean images update the running statistics of batch norm
            once more before every attack.

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Logits or gradients are not finite.

    References:
        Sriramanan et al. 2021, "Towards Efficient and Effective Adversarial Training", Sec. 4; the schedule and the
        mode of f(X) from the authors' code.
    """

    info = MethodInfo(
        name="nuat",
        title="nuclear-norm regularisation",
        reference="Sriramanan et al. 2021",
        passes=PassCounts(3.5, 3, 2),  # three forward passes and four in turn
        recipe={"batch_size": 64, "schedule": "nuat", "epochs": 100},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 1,
        *,
        epochs: int,
        norm: str = "linf",
        bn: str = "eval",
        max_lambda: float = 4.5,
        divisor: int | None = 64,
        as_published: bool = False,
    ):
        self.threat = ThreatModel(norm, eps)
        step_size = eps if step_size is None else step_size
        if not (math.isfinite(step_size) and step_size >= 0) or steps < 1:
            raise ConfigError(
                f"step_size and steps are {step_size} and {steps}; expected a finite step >= 0, 1 or more times"
            )
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        if epochs < 1 or not (math.isfinite(max_lambda) and max_lambda >= 0):
            raise ConfigError(
                f"epochs and max_lambda are {epochs} and {max_lambda}; expected 1 or more, and a number >= 0"
            )
        if divisor is not None and divisor < 1:
            raise ConfigError(f"divisor is {divisor}; expected a batch size, or None for that of each batch")
        self.step_size, self.steps, self.bn = step_size, steps, bn
        self.divisor, self.as_published = divisor, as_published
        self.max_lambda, self.ramp = max_lambda, max(epochs - 10, 1) if steps == 1 else epochs
        self.epoch = self.batches = 0  # batches: of this epoch so far
        self.epoch_is_given = False  # by start_epoch

    @property
    def weight(self) -> float:
        """lambda in the current epoch."""
        return self.max_lambda * min(self.epoch / self.ramp, 1)

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
        losses = self.cross_entropy(natural, y) + self._smoothness(natural - logits)
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
        return lambda logits: cross_entropy(logits, y) + self._smoothness(target - logits)

    def _smoothness(self, difference: Tensor) -> Tensor:
        """lambda (n / divisor) <(U V^T)_i, D_i>, (n,), for differences D (n, k) of logits."""
        n = len(difference)
        return self.weight * n / (self.divisor or n) * (polar_factor(difference.detach()) * difference).sum(dim=1)


def polar_factor(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T over positive singular values: the gradient of sum(S).

    Args:
        matrix: (n, k).

    Returns:
        (n, k) in float32, or float64 for a matrix of that type.

    Raises:
        NonFiniteError: The matrix is not finite.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    check_finite(wide)
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    # Directions of rounding errors alone are arbitrary.
    rank = s > s[0] * max(wide.shape) * torch.finfo(wide.dtype).eps
    return (u * rank) @ vh
