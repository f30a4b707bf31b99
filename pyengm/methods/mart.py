"""MART: misclassification-aware adversarial training (Wang et al. 2020)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.noise import near
from pyengm.ops import Key


class MART(AttackMethod):
    """L_i = BCE(f(x'_i), y_i) + beta KL(p(x_i) || p(x'_i)) (1 - p(x_i)_y), x' from PGD that starts 0.001 N(0, I) off x.

    BCE(f(x'), y) = -log p(x')_y - log(1 - max_{k != y} p(x')_k). No gradient is stopped: those of the weights
    1 - p(x)_y count too. As in the authors' code, 1 - p is 1.0001 - p in the second logarithm, which bounds it, and
    1.0000001 - p in the weights. Theirs adds 1e-12 to probabilities inside logarithms; here log-probabilities make
    that superfluous, and both differences from 1 keep their precision where p is near 1.
    x' maximises the cross-entropy. Running statistics of batch norm see x, then x'.
    eps, step_size: in pixel units; step_size is eps / 4 unless given (the authors': eps = 0.031, step_size = 0.007). steps: of PGD.
    beta: weight of the divergence. norm: "linf" or "l2". bn: batch-norm mode of the attack, "eval" as in the authors'
    code. Raises ConfigError for numbers and names out of range. Source: Wang et al. 2020, Sec. 3.
    """

    own_labels = "its boosted cross-entropy asks for one right class"

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        beta: float = 6.0,
        norm: str = "linf",
        bn: str = "eval",
    ):
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta is {beta}; expected a finite number >= 0, such as 6")
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.beta = self.attack.threat, beta

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.attack(model, x, y, start=near(x, key))

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        natural = log_softmax(model(x))
        logits = model(x_adv)
        unsure = 1e-7 + complement(natural.gather(1, y[:, None]).squeeze(1))
        losses = boosted_cross_entropy(log_softmax(logits), y) + self.beta * unsure * kl_divergence(logits, natural)
        return StepOutput(losses, x_adv, logits)


def boosted_cross_entropy(log_p: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1.0001 - max_{k != y} p_k), (n,), of log-probabilities (n, k)."""
    own = F.one_hot(y, log_p.shape[1]).bool()
    wrong = log_p.masked_fill(own, -torch.inf).max(dim=1).values
    return F.nll_loss(log_p, y, reduction="none") - (1e-4 + complement(wrong)).log()


def complement(log_p: Tensor) -> Tensor:
    """1 - p of log p, to full precision where p is near 1."""
    return -torch.expm1(log_p)
