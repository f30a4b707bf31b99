"""The first-order stationary condition (FOSC) of adversarial examples, and the attack that it controls."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key, fosc, fosc_step_


def fosc_of(model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: ThreatModel, *, bn: str = "eval") -> Tensor:
    """How far from stationary each x_adv is, (n,): eps ||g||_1 - <x_adv - x, g>, g the cross-entropy's gradient there.

    At least 0 in the ball around x, and 0 where no first-order step gains anything; with ||g||_2 for the L2 norm. The
    bounds of [0, 1] do not enter. x_adv, x: (n, ...) images; y: (n,) int64 labels. bn: the model's mode, see
    `attack_mode`.
    Raises DataError for images that do not fit, NonFiniteError for a loss or gradient that is not finite.
    Source: Wang et al. 2019, Eq. 4 and its closed form in Sec. 3.1.
    """
    check_batch(x, y)
    check_extras(x, x_adv, None, None)
    with attack_mode(model, bn), torch.no_grad():
        grad, losses, _ = input_grad(model, x_adv, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        return fosc(x_adv.detach(), grad, x.detach(), threat.eps, norm=threat.norm)


class FOSCPGD:
    """PGD on the cross-entropy that stops each example once its FOSC is at most a threshold.

    The first step is for all; before each further one the gradient that it will follow decides who goes on. Stopped
    examples stay where they are and leave the batch. eps, step_size: in pixel units. steps: the most that an example takes.
    norm: "linf" or "l2". random_start: begin at a uniform point of the ball instead of x. bn: the model's mode; in
    others than "eval" the examples see each other, and the stopped ones stay in the batch.
    Raises ConfigError for numbers and names out of range. Source: Wang et al. 2019, Alg. 1, where V is to be 1 as long
    as the FOSC is above the threshold, as the comment beside it says, and not below.
    """

    keyed = True  # takes key=, the random numbers to use

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
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.step_size, self.steps, self.random_start, self.bn = step_size, steps, random_start, bn

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threshold: float = 0.0,
        start: Tensor | None = None,
        origin: Tensor | None = None,
        key: Key | None = None,
    ) -> Tensor:
        """Adversarial examples for images x (n, ...) in [0, 1] with labels y (n,) int64.

        threshold: of the FOSC, in units of the loss. start: (n, ...) first iterate in place of the random one; it may
        lie outside, as no step leaves it there. origin: (n, ...) the point that the FOSC measures displacements from,
        in place of x. key: whose random numbers to use; None takes a fresh seed from torch's default generator.
        Returns a tensor like x that needs no gradient. Raises what `PGD` raises.
        """
        check_batch(x, y)
        check_extras(x, start, key, None)
        check_extras(x, origin, None, None)
        x_adv = empty_dense(x)
        with attack_mode(model, self.bn), torch.no_grad():
            if start is not None or not self.random_start:
                x_adv.copy_(x if start is None else start)
            else:
                key = Key.fresh(len(x), x.device) if key is None else key
                self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=x_adv), x)
            self._ascend(model, x_adv, x.detach(), y, None if origin is None else origin.detach(), threshold)
        return x_adv

    def _ascend(
        self, model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, origin: Tensor | None, threshold: float
    ) -> None:
        still = x_adv, x, y, origin  # of the examples in the batch, which are rows `alive` of all
        alive = None
        active = torch.ones_like(y, dtype=torch.bool)
        finite = 0.0
        for k in range(self.steps):
            grad, losses, _ = input_grad(model, still[0], partial(cross_entropy, y=still[2]))
            finite = finite + losses.sum() + grad.sum()  # looked at once: looking waits for the device
            if k == 0:
                self.threat.step_(still[0], grad, x, self.step_size)
                continue
            self._step(still, grad, active, threshold)
            remaining = int(active.sum())
            if remaining == len(active):
                continue
            if remaining == 0:
                break
            if self.bn == "eval":
                if alive is not None:
                    x_adv[alive] = still[0]
                alive = active.nonzero().flatten() if alive is None else alive[active]
                still = tuple(t if t is None else t[active] for t in still)
                active = active[active]
        check_finite(finite)
        if alive is not None:
            x_adv[alive] = still[0]

    def _step(self, still: tuple[Tensor | None, ...], grad: Tensor, active: Tensor, threshold: float) -> None:
        """One step of the active examples, but those whose FOSC is at most the threshold become inactive instead."""
        x_adv, x, _, origin = still
        if self.threat.norm == "linf" and origin is None:
            fosc_step_(x_adv, grad, x, active, self.step_size, self.threat.eps, threshold)
            return
        reached = fosc(x_adv, grad, x if origin is None else origin, self.threat.eps, norm=self.threat.norm)
        active &= reached > threshold
        self.threat.step_(x_adv, grad, x, self.step_size, mask=active)
