"""MART: misclassification-aware adversarial training (Wang et al. 2020)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.attacks.validation import check_batch
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import gaussian_start
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class MART(AttackMethod):
    """L_i = BCE(f(x'_i), y_i) + beta KL(p(x_i) || p(x'_i)) (1 - p(x_i)_y), x' from PGD started at x + 0.001 N(0, I).

    BCE(f(x'), y) = -log p(x')_y - log(1 - max_{k != y} p(x')_k). No gradient is stopped: those of the weights
    1 - p(x)_y count too. As in the authors' code, 1 - p is 1.0001 - p in the second logarithm, which bounds it, and
    1.0000001 - p in the weights. Their code adds 1e-12 to probabilities inside logarithms; here log-probabilities make
    that superfluous, and both differences from 1 keep their precision where p is near 1.
    x' maximises the cross-entropy. Running statistics of batch norm see x, then x'.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 4 unless given (the authors': 0.007).
        steps: Steps of PGD.
        beta: Weight of the divergence.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wang et al. 2020, Sec. 3.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> opt = pyengm.MSGD(model.parameters(), lr=0.1)
        >>> steps = pyengm.train_step(pyengm.methods.MART(eps=8 / 255), model, opt, x, y)
    """

    info = MethodInfo(
        name="mart",
        title="MART",
        reference="Wang et al. 2020",
        passes=PassCounts(2, 2, 2, per_step=True),
        # eps and step_size: the authors' rounding of 8/255 and 2/255
        recipe={
            "eps": 0.031,
            "step_size": 0.007,
            "lr": 0.01,
            "weight_decay": 3.5e-3,
            "epochs": 120,
            "milestones": (74, 89, 99),
        },
        short_recipe=lambda run: {"lr": run.lr / 4},
        is_pgd=True,
        own_labels="its boosted cross-entropy needs one right class",
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
    ):
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta is {beta}; expected a finite number >= 0, such as 6")
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, bn=bn)
        self.threat, self.beta = self.attack.threat, beta

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        check_batch(x, y)  # the attack would take probabilities
        return self.attack(model, x, y, start=gaussian_start(x, key))

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        natural = log_softmax(logits_of(model, x))
        logits = logits_of(model, x_adv)
        unsure = 1e-7 + complement(natural.gather(1, y[:, None]).squeeze(1))
        boosted = boosted_cross_entropy(log_softmax(logits), y)
        losses = boosted + self.beta * unsure * kl_divergence(logits, natural)
        return StepOutput(losses, x_adv, logits, weighed=boosted)


def boosted_cross_entropy(log_p: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1.0001 - max_{k != y} p_k), (n,), for log-probabilities log_p (n, k) and labels y (n,)."""
    own = F.one_hot(y, log_p.shape[1]).bool()
    wrong = log_p.masked_fill(own, -torch.inf).max(dim=1).values
    return F.nll_loss(log_p, y, reduction="none") - (1e-4 + complement(wrong)).log()


def complement(log_p: Tensor) -> Tensor:
    """1 - p for log p of any shape, in full precision where p is near 1."""
    return -torch.expm1(log_p)
