"""TRADES (Zhang et al. 2019)."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import gaussian_start
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class TRADES(AttackMethod):
    """L_i = CE(f(x_i), y_i) + beta KL(p(x_i) || p(x'_i)), x' from PGD on the divergence, started at x + 0.001 N(0, I).

    The gradient flows through both p(x) and p(x'). In the attack p(x) is computed once, where the authors' code runs
    the clean images again at every step. The logarithms of both are used, so that probabilities of 0 do no harm.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 4 unless given (the authors': 0.007).
        steps: Steps of PGD.
        beta: Weight of the divergence.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".
        as_published: As in the authors' code, the clean images update the running statistics of batch norm a second
            time, at the price of one more forward pass.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Zhang et al. 2019, Eq. 5 and Alg. 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> opt = pyengm.MSGD(model.parameters(), lr=0.1)
        >>> steps = pyengm.train_step(pyengm.methods.TRADES(eps=8 / 255, beta=6.0), model, opt, x, y)
    """

    info = MethodInfo(
        name="trades",
        title="TRADES",
        reference="Zhang et al. 2019",
        passes=PassCounts(3, 2, 2, per_step=True),
        # eps and step_size: the authors' rounding of 8/255 and 2/255
        recipe={"eps": 0.031, "step_size": 0.007, "weight_decay": 2e-4, "epochs": 76, "milestones": (74,)},
        is_pgd=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        beta: float = 6.0,
        norm: str = "linf",
        bn: str = "eval",
        as_published: bool = False,
    ):
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta is {beta}; expected a finite number >= 0, such as 6")
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, loss="kl", bn=bn)
        self.threat, self.beta, self.as_published = self.attack.threat, beta, as_published

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, start=gaussian_start(x, key))

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        natural, logits = logits_of(model, x), logits_of(model, x_adv)
        if self.as_published:
            with torch.no_grad():
                logits_of(model, x)
        robust = self.beta * kl_divergence(logits, log_softmax(natural))
        return StepOutput(self.cross_entropy(natural, y) + robust, x_adv, logits, weighed=robust)
