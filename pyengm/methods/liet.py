"""LIET: starts of the attack without the label's information, and outputs held together (Pan et al. 2025)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.input_grad import HALF_SCALE, input_grad
from pyengm.attacks.logits import CheckedModel, check_labels, logits_of
from pyengm.attacks.losses import cross_entropy, kl_divergence, log_softmax
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_numbers, checked
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, philox_uniform

GREY = 0.5


@register_method
class LIET(SinglePassMethod):
    """L_i = RS(f(x'_i), y_i) + lambda JS(p(z_i), p(x'_i)), x' one step up RS from z = clip(x +- d_{y_i}).

    d_c is eps times the sign of the gradient of RS for class c on a grey image, taken anew in every interval-th batch
    of an epoch with batch norm in evaluation mode. In z, a random share of its pixels, uniform in [min_share,
    max_share] for each image, is replaced by U(-eps, eps), and the sign is random; the authors' code draws share and
    sign once for a batch. x' is clipped to the ball of radius eps and to [0, 1]; not to the ball where `projected` is
    off, as in the authors' code for eps = 16/255, where the noise is U(-2 eps, 2 eps). RS is the cross-entropy with
    labels that give 1 - smoothing to the class and the rest to the others in random shares, drawn once for an image and
    an epoch (d_c: once for a class and a batch). JS is the Jensen-Shannon divergence; lambda rises linearly with the
    epochs to max_lambda in the last. Both passes are part of the losses, so both run in training mode. In L2 gradients
    over their norm take the place of signs.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        epochs: Length of the run in epochs.
        max_lambda: Last lambda; the authors' 100 for CIFAR-10 and 200 for CIFAR-100, and 20 for eps = 16/255.
        min_share: Least share of the pixels of d that are replaced.
        max_share: Largest share.
        smoothing: Probability that the labels give to other classes; the authors' 0.6, 0.8 for CIFAR-100.
        interval: Batches between two gradients on grey images.
        projected: Whether x' is clipped to the ball.
        norm: Norm of the threat model, "linf" or "l2".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Pan et al. 2025, "Mitigating Catastrophic Overfitting in Fast Adversarial Training via Label Information
        Elimination"; losses and numbers from the authors' code, which also averages the weights, and whose
        one-cycle learning rate falls along a cosine.
    """

    info = MethodInfo(
        name="liet",
        title="starts without the label's information",
        reference="Pan et al. 2025",
        passes=PassCounts(2, 3, 2),
        recipe={"schedule": "cyclic", "pct_start": 0.3, "epochs": 100},
        own_labels="its labels are smoothed at random by its own option, smoothing",
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        epochs: int,
        max_lambda: float = 100.0,
        min_share: float = 0.1,
        max_share: float = 0.5,
        smoothing: float = 0.6,
        interval: int = 20,
        projected: bool = True,
        norm: str = "linf",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        check_numbers(step_size=self.step_size, max_lambda=max_lambda)
        if not 0 <= min_share <= max_share <= 1 or not 0 <= smoothing < 1:
            raise ConfigError(
                f"min_share, max_share and smoothing are {min_share}, {max_share} and {smoothing}; expected "
                "0 <= min_share <= max_share <= 1 and 0 <= smoothing < 1"
            )
        if epochs < 1 or interval < 1:
            raise ConfigError(f"epochs and interval are {epochs} and {interval}; expected at least 1 of each")
        reach = 2 * eps + self.step_size
        free = ThreatModel(norm, reach if norm == "l2" else min(reach, 1.0))
        self.reach, self.projected = self.threat if projected else free, projected
        self.epochs, self.max_lambda, self.smoothing, self.interval = epochs, max_lambda, smoothing, interval
        self.min_share, self.max_share = min_share, max_share
        self.batches = 0  # of this epoch so far
        self.marks: Tensor | None = None  # d, (k, ...)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.batches = 0

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        key = Key.fresh(len(x), x.device) if key is None else key
        if self.marks is None or self.marks.shape[1:] != x.shape[1:] or self.batches % self.interval == 0:
            self.marks = self._new_marks(model, x, key)
        check_labels(self.marks.flatten(1).mT, y)  # a column for each class
        self.batches += 1
        start = self._start(x, y, key).requires_grad_()
        before = logits_of(model, start, y)
        labels = self._labels(y, before.shape[1], key, x.dtype)
        losses = cross_entropy(before, labels)
        (grad,) = torch.autograd.grad(HALF_SCALE * losses.sum(), start, retain_graph=True)
        check_finite(losses, grad)
        x_adv = self.as_input(self.reach.step_(start.detach().clone(), grad, x, self.step_size))
        logits = logits_of(model, x_adv)
        weight = self.max_lambda * (key.epoch + 1) / self.epochs
        return StepOutput(cross_entropy(logits, labels) + weight * jensen_shannon(before, logits), x_adv, logits)

    def _new_marks(self, model: nn.Module, x: Tensor, key: Key) -> Tensor:
        """d for all classes, (k, ...)."""
        with attack_mode(model, "eval"), torch.no_grad():
            net = CheckedModel(model)
            grey = torch.full_like(x[:1], GREY)
            classes = torch.arange(net(grey).shape[1], device=x.device)
            named = Key(key.seed, key.epoch, classes)
            labels = self._labels(classes, len(classes), named, x.dtype, draw=1 + self.batches)
            grad, losses, _ = input_grad(net, grey.expand(len(classes), *x.shape[1:]), cross_entropy, labels)
        check_finite(losses, grad)
        return self.threat.eps * (grad.sign() if self.threat.norm == "linf" else unit(grad))

    def _start(self, x: Tensor, y: Tensor, key: Key) -> Tensor:
        """z (n, ...), new memory."""
        assert self.marks is not None
        named = {"seed": key.seed, "epoch": key.epoch, "purpose": Purpose.MASK}
        share, sign = philox_uniform(key.index, (2,), **named).to(x).unbind(1)
        share = self.min_share + (self.max_share - self.min_share) * share
        mask = philox_uniform(key.index, x.shape[1:], draw=1, **named).to(x)
        noise = self.threat.uniform(x, key) * (1 if self.projected else 2)
        wide = (-1, *[1] * (x.dim() - 1))
        delta = self.marks.to(x)[y.argmax(dim=1) if y.is_floating_point() else y]
        delta = torch.where(mask < share.view(wide), noise, delta)
        delta = torch.where(sign.view(wide) < 0.5, -delta, delta)
        return torch.add(x, delta, out=empty_dense(x)).clamp_(0, 1)

    def _labels(self, y: Tensor, classes: int, key: Key, dtype: torch.dtype, draw: int = 0) -> Tensor:
        """Labels (n, k): 1 - smoothing for y, the rest for other classes in random shares."""
        named = {"seed": key.seed, "epoch": key.epoch, "purpose": Purpose.LABEL, "draw": draw}
        shares = philox_uniform(key.index, (classes,), **named).to(dtype) + 2.0**-25  # never all 0
        own = y.to(shares) if y.is_floating_point() else F.one_hot(y, classes).to(shares)
        others = shares * (1 - own)
        return (1 - self.smoothing) * own + self.smoothing * others / others.sum(dim=1, keepdim=True)

    def extra_state(self) -> dict[str, Any]:
        return {"batches": self.batches} | ({} if self.marks is None else {"marks": self.marks})

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]
        self.marks = state["marks"].clone() if "marks" in state else None


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2, (n,), p and q the probabilities of logits (n, k), m their mean."""
    p, q = log_softmax(first), log_softmax(second)
    m = torch.logaddexp(p, q) - math.log(2)
    return (kl_divergence(m, p) + kl_divergence(m, q)) / 2
