"""Backward smoothing: a start of the attack towards noisy outputs (Chen et al. 2022)."""

from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks import attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.validation import check_finite
from pyengm.data import Transform
from pyengm.methods.attack_step import check_numbers, checked
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.methods.trades import TRADES
from pyengm.ops import Key, Purpose, philox_uniform


@register_method
class BackwardSmoothing(TRADES):
    """L_i as in TRADES; x' from one step towards noisy outputs, then steps up the divergence from the clean ones.

    With z = f(x) and r = noise U(-1, 1), uniform for every class, the first step goes down KL(softmax(z + r) || p(x'))
    from x' = x, the others up KL(softmax(z) || p(x')). All steps have one size, and are clipped to the ball and to
    [0, 1].

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size, in pixel units; eps unless given.
        steps: Steps up the divergence.
        beta: Weight of the divergence in the losses.
        noise: Largest noise on an output.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Logits or gradients are not finite.

    References:
        Chen et al. 2022, "Efficient Robust Training via Backward Smoothing", Alg. 2; all numbers from the authors'
        code, beta and noise those of its command for CIFAR-10.
    """

    info = MethodInfo(
        name="backward_smoothing",
        title="a start towards noisy outputs, TRADES in one step",
        reference="Chen et al. 2022",
        passes=PassCounts(3, 3, 2, per_step=True, steps=1),
        recipe={"eps": 0.031, "step_size": 0.031, "epochs": 100, "milestones": (50, 75)},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 1,
        *,
        beta: float = 10.0,
        noise: float = 1.0,
        norm: str = "linf",
        bn: str = "eval",
    ):
        super().__init__(eps, eps if step_size is None else step_size, steps, beta=beta, norm=norm, bn=bn)
        check_numbers(noise=noise)
        self.noise = noise

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = checked(x, y, key)
        x_adv, size = empty_dense(x).copy_(x), self.attack.step_size
        with attack_mode(model, self.attack.bn), torch.no_grad():
            net = CheckedModel(model, y)
            grad, losses, natural = input_grad(net, x, partial(self._to_noisy, key=key))
            check_finite(losses, grad)
            self.threat.step_(x_adv, grad.neg_(), x, size)
            target = log_softmax(natural)
            for _ in range(self.attack.steps):
                grad, losses, _ = input_grad(net, x_adv, kl_divergence, target)
                check_finite(losses, grad)
                self.threat.step_(x_adv, grad, x, size)
        return x_adv

    def _to_noisy(self, logits: Tensor, key: Key) -> Tensor:
        """KL(softmax(z + r) || softmax(z)), (n,), with the first softmax constant, for logits z (n, k)."""
        uniform = philox_uniform(
            key.index, logits.shape[1:], seed=key.seed, epoch=key.epoch, purpose=Purpose.LOGITS
        ).to(logits)
        return kl_divergence(logits, log_softmax(logits.detach() + self.noise * (2 * uniform - 1)))
