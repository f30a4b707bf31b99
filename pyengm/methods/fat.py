"""FAT: friendly adversarial training, on attacks that stop soon after they fool (Zhang et al. 2020)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import log_softmax
from pyengm.attacks.validation import check_batch
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_numbers, checked
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.dynamic import EpochAttack
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.mart import MART
from pyengm.methods.noise import gaussian_start
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import register_method
from pyengm.methods.stopped_attack import ascend_until_stopped
from pyengm.methods.trades import TRADES
from pyengm.ops import Key, Purpose, philox_normal

# The authors' code by loss: the length of the run, and the epochs, counted from 0, from which kappa is one larger
KAPPA = {"ce": (120, (50, 90)), "trades": (85, (30, 50, 70)), "mart": (90, (20, 40, 60, 80))}


@register_method
class FAT(EpochAttack):
    """L_i as in PGD adversarial training, TRADES or MART; x' from PGD that stops kappa steps after it fools the model.

    An example leaves the attack once it is misclassified for the (kappa + 1)-th time before a step. With loss "ce" the
    attack starts at a uniform point of the ball and adds jitter N(0, I) to every step; with "trades" and "mart" it
    starts at x + 0.001 N(0, I), clipped to [0, 1], without jitter. Steps are projected to the ball and to [0, 1]. In
    modes other than "eval", where the examples are not independent, those that have left stay in the batch.

    On a GPU the host waits for the device at every step of the attack, to learn which examples are left.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 4 unless given (the authors': 0.007).
        steps: Most steps that an example takes.
        epochs: Length of the run in epochs.
        loss: "ce", "trades" or "mart".
        kappa: Steps after the first misclassification. None lets it rise from 0 as in the authors' code: by one at 5/12
            and at 3/4 of the run ("trades": 6/17, 10/17 and 14/17; "mart": 2/9, 4/9, 6/9 and 8/9).
        jitter: Standard deviation of the noise in steps, in pixel units; 0.001 with "ce", else 0, unless given.
        beta: Weight of the divergence, with "trades" and "mart".
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Zhang et al. 2020, "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger", Alg. 1 and 2; all
        numbers from the authors' code, whose learning rate also halves at epoch 110.
    """

    info = MethodInfo(
        name="fat",
        title="PGD stopped soon after it fools, `loss`",
        reference="Zhang et al. 2020",
        passes=PassCounts(1, 1, 1, per_step=True, remark="at most {}"),
        recipe={"eps": 0.031, "step_size": 0.007, "weight_decay": 2e-4, "epochs": 120, "milestones": (59, 89)},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        epochs: int,
        loss: str = "ce",
        kappa: int | None = None,
        jitter: float | None = None,
        beta: float = 6.0,
        norm: str = "linf",
        bn: str = "eval",
    ):
        if loss not in KAPPA:
            raise ConfigError(f"loss is {loss!r}; known losses: {', '.join(KAPPA)}")
        if epochs < 1 or (kappa is not None and kappa < 0):
            raise ConfigError(f"epochs and kappa are {epochs} and {kappa}; expected at least 1 epoch and 0 steps")
        self.jitter = (0.001 if loss == "ce" else 0.0) if jitter is None else jitter
        check_numbers(jitter=self.jitter, beta=beta)
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.loss, self.kappa, self.epochs = self.attack.threat, loss, kappa, epochs
        bases = {"trades": TRADES, "mart": MART}
        self.base: AttackMethod = bases[loss](eps, steps=steps, beta=beta) if loss in bases else PGDAT(eps)
        self.info = replace(self.info, own_labels=self.base.info.own_labels)

    def kappa_of(self, epoch: int) -> int:
        """kappa in that epoch, counted from 0."""
        if self.kappa is not None:
            return self.kappa
        length, rises = KAPPA[self.loss]
        return sum(epoch * length >= rise * self.epochs for rise in rises)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        if self.loss == "mart":
            check_batch(x, y)  # its losses take no probabilities
        x, y = checked(x, y, key)
        if self.loss == "ce":
            x_adv = self.threat.project_(x + self.threat.uniform(x, key), x)
        else:
            x_adv = gaussian_start(x, key).clamp_(0, 1)
        with attack_mode(model, self.attack.bn), torch.no_grad():
            net = CheckedModel(model, y)
            target = log_softmax(net(x)) if self.loss == "trades" else y
            self._ascend(net, x_adv, x, y, target, key)
        return x_adv

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        self.base.needs_input_grad, self.base.label_smoothing = self.needs_input_grad, self.label_smoothing
        return self.base.outcome(model, x, x_adv, y)

    def _ascend(self, net: CheckedModel, x_adv: Tensor, x: Tensor, y: Tensor, target: Tensor, key: Key) -> None:
        """Moves x_adv in place. target: of the loss that is ascended."""
        own = y.argmax(dim=1) if y.is_floating_point() else y
        left = torch.full_like(own, self.kappa_of(key.epoch))  # misclassifications before an example leaves
        index = key.index.to(own.device)

        def stops(logits: Tensor, rows: Tensor) -> Tensor:
            wrong = logits.argmax(dim=1) != own[rows]
            leaving = wrong & (left[rows] <= 0)
            left[rows] -= wrong.to(left.dtype)
            return leaving

        def jitter(rows: Tensor, step: int) -> Tensor:
            named = {"seed": key.seed, "epoch": key.epoch, "purpose": Purpose.JITTER, "draw": step}
            return self.jitter * philox_normal(index[rows], x.shape[1:], **named).to(x)

        loss, noise = "kl" if self.loss == "trades" else "ce", jitter if self.jitter else None
        ascend_until_stopped(self.attack, net, x_adv, x, target, stops, loss=loss, noise=noise)
