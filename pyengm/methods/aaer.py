"""AAER: regularisation of abnormal adversarial examples, whose loss the attack lowered (Lin et al. 2023)."""

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.data import Transform
from pyengm.methods.attack_step import CYCLIC, check_bn, check_numbers, checked, loss_gradient
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum

# Weights of the two terms for eps = 8/255, with and without projection to the ball, for CIFAR-10
PUBLISHED = {True: (2.5, 1.5), False: (1.5, 0.15)}


@register_method
class AAER(SinglePassMethod):
    """L_i = l_i + a_i (ce_weight (l0_i - l_i) + variation_weight s (v_i - mean_normal v)), l_i = CE(f(x'_i), y_i).

    x' is one step of FGSM from a random point z, as in `FGSMRS` with projection (RS-AAER), and as in `NFGSM` without
    (N-AAER). l0_i is the cross-entropy at z, and v_i = |f(z_i) - f(x'_i)|^2 with f(z) constant. a_i = 1 for abnormal
    examples, l0_i > l_i, else 0. mean_normal v is that of the normal examples of the batch, held constant, and s = 1
    where the mean of v over the abnormal ones is larger, else 0. Where all examples are of one kind, L_i = l_i. As in
    the authors' code l0_i - l_i is held constant: it is part of the loss and not of its gradient.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 1.25 eps with projection and eps without, unless given.
        projected: Whether z and x' are in the ball of radius eps; else z is within 2 eps, and x' a step from there.
        ce_weight: Weight of the cross-entropy's fall; None takes the authors' value for eps = 8/255, 2.5 with
            projection and 1.5 without.
        variation_weight: Weight of the variation of the logits; None takes 1.5 with projection and 0.15 without.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Lin et al. 2023, "Eliminating Catastrophic Overfitting Via Abnormal Adversarial Examples Regularization"; losses
        and numbers from the authors' code.
    """

    info = MethodInfo(
        name="aaer",
        title="FGSM with abnormal examples regularised",
        reference="Lin et al. 2023",
        passes=PassCounts(2, 2, 1),
        recipe=CYCLIC,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        projected: bool = True,
        ce_weight: float | None = None,
        variation_weight: float | None = None,
        norm: str = "linf",
        bn: str = "train",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = (1.25 if projected else 1.0) * eps if step_size is None else step_size
        known = PUBLISHED[projected]
        self.ce_weight = known[0] if ce_weight is None else ce_weight
        self.variation_weight = known[1] if variation_weight is None else variation_weight
        check_numbers(step_size=self.step_size, ce_weight=self.ce_weight, variation_weight=self.variation_weight)
        check_bn(bn)
        reach = 2 * eps + self.step_size
        free = ThreatModel(norm, reach if norm == "l2" else min(reach, 1.0))
        self.projected, self.bn, self.reach = projected, bn, self.threat if projected else free

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        key = Key.fresh(len(x), x.device) if key is None else key
        noise = self.threat.uniform(x, key) * (1 if self.projected else 2)
        x_adv = self.reach.project_(torch.add(x, noise, out=empty_dense(x)), x)
        grad, before, start = loss_gradient(model, x_adv, y, self.bn)
        x_adv = self.as_input(self.reach.step_(x_adv, grad, x, self.step_size))
        logits = logits_of(model, x_adv)
        losses = self.cross_entropy(logits, y) + self._regularisation(before, start, logits, y)
        return StepOutput(losses, x_adv, logits)

    def _regularisation(self, before: Tensor, start: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The second part of the losses, (n,). before: (n,) losses at z; start: (n, k) logits at z."""
        fall = before - cross_entropy(logits.detach(), y)
        abnormal = fall > 0
        difference = (start - logits).to(torch.promote_types(logits.dtype, torch.float32))
        variation = difference.square().sum(dim=1)
        kinds = torch.stack([abnormal, ~abnormal]).to(variation.dtype)
        sums = all_reduce_sum(torch.cat([kinds.sum(dim=1), kinds @ variation.detach()]))
        (m, rest), (ours, theirs) = sums[:2], sums[2:] / sums[:2].clamp(min=1)
        used = kinds[0] * ((m > 0) & (rest > 0))
        return used * (self.ce_weight * fall + self.variation_weight * ((variation - theirs) * (ours > theirs)))
