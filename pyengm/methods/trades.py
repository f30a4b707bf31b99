"""TRADES (Zhang et al. 2019)."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.noise import near
from pyengm.ops import Key


class TRADES(AttackMethod):
    """L_i = CE(f(x_i), y_i) + beta KL(p(x_i) || p(x'_i)), x' from PGD on the divergence, started 0.001 N(0, I) off x.

    The gradient flows through both p(x) and p(x'). In the attack p(x) is computed once, where the authors' code runs
    the clean images again at every step. The logarithms of both are used, so that probabilities of 0 do no harm.
    eps, step_size: in pixel units; step_size is eps / 4 unless given (the authors': eps = 0.031, step_size = 0.007). steps: of PGD.
    beta: weight of the divergence. norm: "linf" or "l2". bn: batch-norm mode of the attack.
    as_published: as in the authors' code, the clean images update the running statistics of batch norm a second
    time, at the price of one more forward pass. Raises ConfigError for numbers and names out of range.
    Source: Zhang et al. 2019, Eq. 5 and Alg. 1.
    """

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
        return self.attack(model, x, y, start=near(x, key))

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        natural, logits = model(x), model(x_adv)
        if self.as_published:
            with torch.no_grad():
                model(x)
        robust = kl_divergence(logits, log_softmax(natural))
        return StepOutput(self.cross_entropy(natural, y) + self.beta * robust, x_adv, logits)
