"""Projected gradient descent (Madry et al. 2018) in L-infinity and L2, and FGSM and C&W as its special cases."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks.check import check_batch, check_extras
from pyengm.attacks.losses import loss_named
from pyengm.attacks.mode import BN_MODES, attack_mode
from pyengm.attacks.threat import Threat
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.ops import Key, Purpose, pgd_linf_step_, philox_normal, philox_uniform


class PGD:
    """Steps of size `step` up the loss, each followed by a projection to the eps-ball around x and to [0, 1].

    eps, step: in pixel units. steps: number of forward-backward passes. norm: "linf" (sign steps) or "l2"
    (steps along the gradient of the example, divided by its norm). loss: "ce", "margin" or "cw".
    random_start: begin at a uniform point of the ball instead of x. restarts: independent runs, of which each example
    keeps the best: one that fools the model before one that does not, then the larger loss.
    bn: the model's mode during the attack, "eval", "train" or "frozen" (see `attack_mode`).
    Raises ConfigError for numbers and names out of range.
    """

    def __init__(
        self,
        eps: float,
        step: float,
        steps: int,
        *,
        norm: str = "linf",
        loss: str = "ce",
        random_start: bool = True,
        restarts: int = 1,
        bn: str = "eval",
    ):
        self.threat = Threat(norm, eps)
        self.loss = loss_named(loss)
        if not (math.isfinite(step) and step >= 0):
            raise ConfigError(f"step is {step}; expected a finite number >= 0 in pixel units, such as 2/255")
        if steps < 1 or restarts < 1:
            raise ConfigError(f"steps and restarts are {steps} and {restarts}; expected at least 1 of each")
        if restarts > 1 and not random_start:
            raise ConfigError("restarts without a random start would all be the same; set restarts=1")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.step, self.steps, self.random_start, self.restarts, self.bn = step, steps, random_start, restarts, bn

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        key: Key | None = None,
        out: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor:
        """Adversarial examples for pictures x (n, ...) in [0, 1] with labels y (n,) int64.

        start: (n, ...) first iterate in place of the random one; it is projected before the first step.
        key: whose random numbers to use; None takes a fresh seed from torch's default generator.
        out: (n, ...) buffer for the result, contiguous or channels_last, other memory than x; None allocates one.
        gradient: (n, ...) takes the gradient of sum_i loss_i that the last step followed, at the iterate before it;
            AENGM and NENGM may weigh by it (`backward(losses, input_gradient=gradient)`) at no cost.
        Returns a tensor like x that needs no gradient. The model is left as it was.
        Raises DataError for x outside [0, 1] or not finite, or shapes that do not fit, NonFiniteError when the
        model's loss or its gradient is not finite.
        """
        check_batch(x, y)
        check_extras(x, start, key, out)
        if start is not None and self.restarts > 1:
            raise ConfigError("restarts from one given start would all be the same; drop start or set restarts=1")
        if gradient is not None and (self.restarts > 1 or gradient.shape != x.shape):
            raise ConfigError(
                f"gradient is for attacks without restarts and has the shape of x, {tuple(x.shape)}; got "
                f"{self.restarts} restarts and {tuple(gradient.shape)}"
            )
        if key is None and self.random_start and start is None:
            key = Key.fresh(len(x), x.device)
        out = _buffer_like(x) if out is None else out
        with attack_mode(model, self.bn), torch.no_grad():
            self._first(out, x, start, key, draw=0)
            last = self._ascend(model, out, x, y)
            if gradient is not None:
                gradient.copy_(last)
            if self.restarts > 1:
                best = self._score(model, out, y)
            for draw in range(1, self.restarts):
                again = self._first(torch.empty_like(out), x, None, key, draw)
                self._ascend(model, again, x, y)
                score = self._score(model, again, y)
                better = (score > best).view(-1, *[1] * (x.dim() - 1))
                out.copy_(torch.where(better, again, out))
                best = torch.maximum(score, best)
        return out

    def _first(self, x_adv: Tensor, x: Tensor, start: Tensor | None, key: Key | None, draw: int) -> Tensor:
        if start is not None:
            return project_(x_adv.copy_(start), x, self.threat)
        if not self.random_start:
            return x_adv.copy_(x)
        return project_(torch.add(x, random_in_ball(x, self.threat, key, draw), out=x_adv), x, self.threat)

    def _ascend(self, model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Moves x_adv in place; returns the gradient of the last step."""
        for _ in range(self.steps):
            grad, total = self._gradient(model, x_adv, y)
            if self.threat.norm == "linf":
                pgd_linf_step_(x_adv, grad, x, self.step, self.threat.eps)
            else:
                project_(x_adv.add_(_unit(grad), alpha=self.step), x, self.threat)
        # The gradient too: a nan in it moves nothing, and the example would pass for a robust one.
        if not math.isfinite((total + grad.sum()).item()):
            raise NonFiniteError("the attack's loss or its gradient is nan or infinite: look at the model's outputs")
        return grad

    def _gradient(self, model: nn.Module, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x_adv.detach().requires_grad_()  # x_adv itself, often the caller's buffer, never needs a gradient
        with torch.enable_grad():
            # The sum, not the mean: every example's gradient keeps its own scale whatever the batch size.
            total = self.loss(model(leaf), y).sum()
        (grad,) = torch.autograd.grad(total, leaf)
        return grad, total.detach()

    def _score(self, model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
        logits = model(x_adv)
        fooled = logits.argmax(dim=1) != y
        # arctan is increasing and below pi/2: the loss decides among equals, never across.
        return fooled.double() * 4 + self.loss(logits, y).double().arctan()


class FGSM(PGD):
    """One step of size eps from x itself (Goodfellow et al. 2015); arguments as for PGD."""

    def __init__(self, eps: float, *, norm: str = "linf", loss: str = "ce", bn: str = "eval"):
        super().__init__(eps, eps, 1, norm=norm, loss=loss, random_start=False, bn=bn)


class CW(PGD):
    """PGD on the loss of Carlini & Wagner 2017, 30 steps of eps / 10 (as in Wang et al. 2019, Sec. 5.1)."""

    def __init__(self, eps: float, *, steps: int = 30, norm: str = "linf", bn: str = "eval"):
        super().__init__(eps, eps / 10, steps, norm=norm, loss="cw", bn=bn)


def random_in_ball(x: Tensor, threat: Threat, key: Key, draw: int = 0) -> Tensor:
    """Perturbations (n, ...) uniform in the eps-ball, from the numbers of `key`."""
    named = {"seed": key.seed, "epoch": key.epoch, "draw": draw}
    if threat.norm == "linf":
        uniform = philox_uniform(key.index, x.shape[1:], purpose=Purpose.START, **named)
        return uniform.to(x.dtype).mul_(2).sub_(1).mul_(threat.eps)
    direction = _unit(philox_normal(key.index, x.shape[1:], purpose=Purpose.START, **named).to(x.dtype))
    radius = philox_uniform(key.index, (1,) * (x.dim() - 1), purpose=Purpose.RADIUS, **named).to(x.dtype)
    return direction.mul_(radius.pow_(1 / x[0].numel())).mul_(threat.eps)


def project_(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """The nearest point of the eps-ball around x, then of [0, 1]; in place."""
    if threat.norm == "linf":
        return pgd_linf_step_(x_adv, x, x, 0.0, threat.eps)
    delta = x_adv - x
    norms = _norms(delta)
    scale = torch.where(norms > threat.eps, threat.eps / norms, torch.ones_like(norms))
    return torch.add(x, delta.mul_(scale), out=x_adv).clamp_(0, 1)


def _norms(t: Tensor) -> Tensor:
    """L2 norm per example, shaped to broadcast against t."""
    # In float64: squares of 1e-23, common in the gradient of a confident model, are 0 in float32.
    norms = torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64)
    return norms.to(t.dtype).view(-1, *[1] * (t.dim() - 1))


def _unit(t: Tensor) -> Tensor:
    """t divided by its norm per example; an example of zeros stays zero."""
    norms = _norms(t)
    return t / norms.where(norms > 0, 1.0)


def _buffer_like(x: Tensor) -> Tensor:
    """Memory for x_adv in a layout that the steps take: channels_last where x has it, else contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x, memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
