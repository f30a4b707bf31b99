"""Self-adaptive training: labels that follow the model, on top of TRADES (Huang et al. 2020)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.attacks.logits import check_labels, logits_of
from pyengm.attacks.losses import cross_entropy, kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError, DataError
from pyengm.methods.attack_step import check_numbers, checked
from pyengm.methods.base import SinglePassMethod, StepOutput, require_key
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import gaussian_start
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum


@register_method
class SelfAdaptive(SinglePassMethod):
    """L_i = w_i CE(f(x_i), t_i) + beta KL(p(x_i) || p(x'_i)), t_i a label that follows the model, x' as in TRADES.

    t_i is the given label at first. From epoch `begin` on, before each use, t_i <- momentum t_i + (1 - momentum)
    p(x_i), and w_i is proportional to the largest entry of t_i, with mean 1 over the batch; before it w_i = 1. Both are
    constant in the gradient.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 4 unless given (the authors': 0.007).
        steps: Steps of PGD.
        epochs: Length of the run in epochs.
        beta: Weight of the divergence.
        momentum: Share of the old label.
        begin: First epoch in which labels move, counted from 0; unless given that at 69 % of the run, the authors' 69
            of 100.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".

    Raises:
        ConfigError: A value is out of range, or an image comes without a key or before `prepare`.
        DataError: The model has another number of classes than `prepare` was given.

    References:
        Huang et al. 2020, "Self-Adaptive Training: beyond Empirical Risk Minimization", Alg. 1 and Sec. 4, the row BERM
        of Dabouei et al. 2022, Table 4; all numbers from the authors' code.
    """

    info = MethodInfo(
        name="self_adaptive",
        title="labels that follow the model, TRADES",
        reference="Huang et al. 2020",
        passes=PassCounts(3, 2, 2, per_step=True),
        recipe={
            "eps": 0.031,
            "step_size": 0.007,
            "weight_decay": 2e-4,
            "epochs": 100,
            "milestones": (74, 89, 99),
        },
        epoch_options={"begin": 0},
        own_labels="its labels follow the model",
    )
    labels = BufferSlot()  # all 0 until the label of an image has moved

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        epochs: int,
        beta: float = 6.0,
        momentum: float = 0.9,
        begin: int | None = None,
        norm: str = "linf",
        bn: str = "eval",
    ):
        check_numbers(beta=beta)
        self.begin = epochs * 69 // 100 if begin is None else begin
        if not 0 <= momentum <= 1 or epochs < 1 or self.begin < 0:
            raise ConfigError(
                f"momentum, epochs and begin are {momentum}, {epochs} and {begin}; expected a share from 0 to 1, at "
                "least 1 epoch and an epoch counted from 0"
            )
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, loss="kl", bn=bn)
        self.threat, self.beta, self.momentum = self.attack.threat, beta, momentum

    def prepare(self, dataset: DatasetSpec) -> None:
        self.labels = PerExampleBuffer(replace(dataset, shape=(dataset.classes, 1, 1), padding=0))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        key = require_key(self, key)
        x, y = checked(x, y, key)
        x_adv = self.as_input(self.attack(model, x, y, start=gaussian_start(x, key)))
        natural, logits = logits_of(model, x), logits_of(model, x_adv)
        check_labels(natural, y)
        if key.epoch < self.begin:
            own = cross_entropy(natural, y)
        else:
            labels = self._move_labels(natural.detach(), y, self.labels.rows(key.index))
            weights = labels.amax(dim=1)
            total, n = all_reduce_sum(torch.stack([weights.sum(), torch.ones_like(weights).sum()]))
            own = weights * (n / total) * cross_entropy(natural, labels)
        robust = self.beta * kl_divergence(logits, log_softmax(natural))
        return StepOutput(own + robust, x_adv, logits, weighed=robust)

    def _move_labels(self, logits: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """The labels (n, k) after their move towards the probabilities of logits (n, k)."""
        kept, classes = self.labels.values[rows].flatten(1), logits.shape[1]
        if kept.shape[1] != classes:
            raise DataError(f"the model has {classes} classes, and prepare() was given {kept.shape[1]}")
        p = log_softmax(logits).exp()
        given = y.to(p) if y.is_floating_point() else F.one_hot(y, classes).to(p)
        old = torch.where(kept.sum(dim=1, keepdim=True) > 0, kept.to(p), given)
        moved = self.momentum * old + (1 - self.momentum) * p
        self.labels.values[rows] = moved[:, :, None, None].to(self.labels.values)
        return moved
