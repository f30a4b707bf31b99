"""The first-order stationary condition (FOSC) of adversarial examples, and PGD that stops examples by it."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, Model
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import attack_mode, check_bn_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key, fosc, fosc_step_


@torch.inference_mode(False)
def fosc_of(model: Model, x_adv: Tensor, x: Tensor, y: Tensor, threat: ThreatModel, *, bn: str = "eval") -> Tensor:
    """How far each x_adv is from stationary: eps ||g||_1 - <x_adv - x, g>, with g the gradient of the cross-entropy.

    The L2 threat model has ||g||_2 in place of ||g||_1. The value is at least 0 in the ball around x, and 0 where no
    first-order step increases the loss. The bounds of [0, 1] do not enter.

    Args:
        model: classifier of images in [0, 1].
        x_adv: adversarial examples (n, ...).
        x: images (n, ...) in [0, 1].
        y: labels (n,) int64.
        threat: the threat model.
        bn: batch-norm mode of the model, see `attack_mode`.

    Returns:
        FOSC (n,), in units of the loss.

    Raises:
        ConfigError: the mode is unknown.
        DataError: images or labels do not fit.
        NonFiniteError: a loss or gradient is not finite.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Eq. 4 and its closed form in
        Sec. 3.1.
    """
    x, y = check_batch(x, y, soft=True)
    check_extras(x, x_adv, None, None)
    with attack_mode(model, bn), torch.no_grad():
        x_adv = x_adv.clone() if x_adv.is_inference() else x_adv
        grad, losses, _ = input_grad(CheckedModel(model, y), x_adv, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        return fosc(x_adv.detach(), grad, x.detach(), threat.eps, norm=threat.norm)


class _Batch(NamedTuple):
    """The examples that are attacked together: iterates, images, labels, and the origin of displacements."""

    x_adv: Tensor
    x: Tensor
    y: Tensor
    origin: Tensor | None

    def select(self, rows: Tensor) -> "_Batch":
        origin = None if self.origin is None else self.origin[rows]
        return _Batch(self.x_adv[rows], self.x[rows], self.y[rows], origin)


class FOSCRecord(NamedTuple):
    """What `FOSCPGD` did to each of n examples.

    Args:
        fosc: (n,) the FOSC where the last gradient was taken that decided on the example: where it was stopped, or one
            step before its last iterate.
        steps: (n,) the steps that it took.
        stopped: (n,) 1 where it was stopped before the last step, else 0.
    """

    fosc: Tensor
    steps: Tensor
    stopped: Tensor

    @classmethod
    def zeros(cls, x: Tensor) -> "FOSCRecord":
        """A record of the images x (n, ...) that an attack fills in."""
        return cls(*(torch.zeros(len(x), device=x.device) for _ in range(3)))

    def note(self, rows: Tensor | None, values: Tensor, before: Tensor, active: Tensor) -> None:
        """Enters a gradient.

        Args:
            rows: (m,) the examples that are attacked; None for all.
            values: (m,) their FOSC.
            before: (m,) bool, whether they were active.
            active: (m,) bool, whether they still are, and step.
        """
        rows = torch.arange(len(self.fosc), device=self.fosc.device) if rows is None else rows
        self.fosc[rows] = torch.where(before, values.to(self.fosc), self.fosc[rows])
        self.steps[rows] += active
        self.stopped[rows] = torch.where(before & ~active, 1.0, self.stopped[rows])


class FOSCPGD:
    """PGD on the cross-entropy that stops each example once its FOSC is at most a threshold.

    All examples take the first step. Before each further step, the gradient that the step would follow decides which
    examples stay active. Inactive examples keep their iterate and leave the batch.

    Args:
        eps: radius in pixel units.
        step_size: step size in pixel units.
        steps: maximum number of steps of an example.
        norm: "linf" or "l2".
        random_start: start at a uniform point of the ball instead of x.
        bn: batch-norm mode of the model, see `attack_mode`. In modes other than "eval" the examples of a batch depend
            on one another, and inactive ones stay in the batch.

    Raises:
        ConfigError: a value is out of range or a name is unknown.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training", Alg. 1, with V = 1 as long as
        the FOSC is above the threshold, as the comment beside it says, and not below.
    """

    keyed = True  # takes key=, which determines the random numbers

    def __init__(
        self,
        eps: float,
        step_size: float,
        steps: int,
        *,
        norm: str = "linf",
        random_start: bool = True,
        bn: str = "eval",
    ):
        self.threat = ThreatModel(norm, eps)
        if not (math.isfinite(step_size) and step_size >= 0) or steps < 1:
            raise ConfigError(
                f"step_size and steps are {step_size} and {steps}; expected a finite step >= 0 and at least 1 of it"
            )
        check_bn_mode(bn)
        self.step_size, self.steps, self.random_start, self.bn = step_size, steps, random_start, bn

    @torch.inference_mode(False)
    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        threshold: float = 0.0,
        start: Tensor | None = None,
        origin: Tensor | None = None,
        key: Key | None = None,
        record: FOSCRecord | None = None,
    ) -> Tensor:
        """Attacks a model.

        Args:
            model: classifier of images in [0, 1]; restored afterwards.
            x: images (n, ...) in [0, 1].
            y: labels (n,) int64.
            threshold: an example stops once its FOSC is at most this, in units of the loss.
            start: first iterate (n, ...) in place of the random one. It may be outside the ball, as every step
                projects.
            origin: points (n, ...) from which the FOSC measures displacements, in place of x.
            key: key of the random numbers; by default one with a seed from torch's default generator.
            record: filled in with what the attack did, see `FOSCRecord.zeros`.

        Returns:
            Adversarial examples like x, which need no gradient.

        Raises:
            DataError: images, labels, start, origin or key do not fit.
            NonFiniteError: a loss or gradient is not finite.
        """
        x, y = check_batch(x, y, soft=True)
        check_extras(x, start, key, None)
        check_extras(x, origin, None, None)
        x_adv = empty_dense(x)
        with attack_mode(model, self.bn), torch.no_grad():
            if start is not None or not self.random_start:
                x_adv.copy_(x if start is None else start)
            else:
                key = Key.fresh(len(x), x.device) if key is None else key
                self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=x_adv), x)
            self._ascend(
                CheckedModel(model, y),
                _Batch(x_adv, x.detach(), y, None if origin is None else origin.detach()),
                threshold,
                record,
            )
        return x_adv

    def _ascend(self, net: CheckedModel, whole: _Batch, threshold: float, record: FOSCRecord | None) -> None:
        """Moves whole.x_adv in place."""
        batch, rows = whole, None  # the examples that are attacked, which are `rows` of the whole batch
        active = torch.ones(len(whole.y), dtype=torch.bool, device=whole.y.device)
        sums = []
        for k in range(self.steps):
            grad, losses, _ = input_grad(net, batch.x_adv, partial(cross_entropy, y=batch.y))
            sums.append(losses.sum() + grad.sum())  # checked once at the end, as a check waits for the device
            noted = None if record is None else (self._fosc(batch, grad), active.clone())
            if k == 0:
                self.threat.step_(batch.x_adv, grad, batch.x, self.step_size)
            else:
                self._step(batch, grad, active, threshold)
            if record is not None and noted is not None:
                record.note(rows, *noted, active)
            if k == 0:
                continue
            kept = active.nonzero().flatten()  # the one time in a step that the host waits
            if len(kept) == 0:
                break
            if len(kept) < len(active) and self.bn == "eval":
                if rows is not None:
                    whole.x_adv[rows] = batch.x_adv
                rows = kept if rows is None else rows[kept]
                batch, active = batch.select(kept), active[kept]
        check_finite(*sums)
        if rows is not None:
            whole.x_adv[rows] = batch.x_adv

    def _step(self, batch: _Batch, grad: Tensor, active: Tensor, threshold: float) -> None:
        """Deactivates the examples whose FOSC is at most the threshold, and moves the other active ones."""
        if self.threat.norm == "linf" and batch.origin is None:
            fosc_step_(batch.x_adv, grad, batch.x, active, self.step_size, self.threat.eps, threshold)
            return
        active &= self._fosc(batch, grad) > threshold
        self.threat.step_(batch.x_adv, grad, batch.x, self.step_size, mask=active)

    def _fosc(self, batch: _Batch, grad: Tensor) -> Tensor:
        origin = batch.x if batch.origin is None else batch.origin
        return fosc(batch.x_adv, grad, origin, self.threat.eps, norm=self.threat.norm)
