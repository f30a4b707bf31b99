"""Projected gradient descent (Madry et al. 2018) in L-infinity and L2, and FGSM and C&W as its special cases."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import log_softmax, loss_named
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key


class PGD:
    """Steps of size `step` up the loss, each followed by a projection to the eps-ball around x and to [0, 1].

    eps, step_size: in pixel units. steps: number of forward-backward passes. norm: "linf" (sign steps) or "l2"
    (steps along the gradient of the example, divided by its norm).
    loss: "ce", "margin", "cw", or "kl", the divergence of the outputs from those on x, which no label enters.
    random_start: begin at a uniform point of the ball instead of x. restarts: independent runs, of which each example
    keeps the best: one that fools the model before one that does not, then the larger loss.
    early_stop: an example that is misclassified leaves the batch and stays as it is.
    bn: the model's mode during the attack, "eval", "train" or "batch_stats" (see `attack_mode`). With "eval" the
    restarts run as one batch; in the other modes, where the examples of a batch see each other, one after another.
    Raises ConfigError for numbers and names out of range, and for early_stop where examples see each other.

    Two attributes, which a trainer may set, make the passes faster. compiled_model: a model, and what runs in its
    place, such as the same one compiled. replay: called as replay(form, function, x_adv, ...) in place of
    function(x_adv, ...), which it may capture in a CUDA graph; not with restarts, nor with early_stop.
    """

    compiled_model: tuple[nn.Module, nn.Module] | None = None
    replay: Callable[..., tuple[Tensor, Tensor]] | None = None

    keyed = True  # takes key=, the random numbers to use

    def __init__(
        self,
        eps: float,
        step_size: float,
        steps: int,
        *,
        norm: str = "linf",
        loss: str = "ce",
        random_start: bool = True,
        restarts: int = 1,
        early_stop: bool = False,
        bn: str = "eval",
    ):
        self.threat = ThreatModel(norm, eps)
        self.loss = loss_named(loss)
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 2/255")
        if steps < 1 or restarts < 1:
            raise ConfigError(f"steps and restarts are {steps} and {restarts}; expected at least 1 of each")
        if restarts > 1 and not random_start:
            raise ConfigError("restarts without a random start would all be the same; set restarts=1")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        if early_stop and bn != "eval":
            raise ConfigError(
                f"early_stop with bn={bn!r} would change the statistics of those that go on: use bn='eval'"
            )
        self.step_size, self.steps, self.random_start, self.restarts = step_size, steps, random_start, restarts
        self.relative, self.early_stop, self.bn = loss == "kl", early_stop, bn

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
        """Adversarial examples for images x (n, ...) in [0, 1] with labels y (n,) int64.

        start: (n, ...) first iterate in place of the random one; it may lie outside, as no step leaves it there.
        key: whose random numbers to use; None takes a fresh seed from torch's default generator.
        out: (n, ...) buffer for the result, contiguous or channels_last, other memory than x; None allocates one.
        gradient: (n, ...) takes the gradient of sum_i loss_i that the last step followed, at the iterate before it;
            AENGM and NENGM may weigh by it (`backward(losses, input_gradient=gradient)`) at no cost. Not with
            restarts, nor with early_stop.
        Returns a tensor like x that needs no gradient. The model is left as it was.
        Raises DataError for x outside [0, 1] or not finite, or shapes that do not fit, NonFiniteError when the
        model's loss or its gradient is not finite.
        """
        check_batch(x, y)
        check_extras(x, start, key, out)
        if start is not None and self.restarts > 1:
            raise ConfigError("restarts from one given start would all be the same; drop start or set restarts=1")
        if gradient is not None and (self.restarts > 1 or self.early_stop or gradient.shape != x.shape):
            raise ConfigError(
                f"gradient is for attacks without restarts or early_stop and has the shape of x, {tuple(x.shape)}; got "
                f"{self.restarts} restarts, early_stop={self.early_stop} and {tuple(gradient.shape)}"
            )
        if key is None and self.random_start and start is None:
            key = Key.fresh(len(x), x.device)
        out = empty_dense(x) if out is None else out
        if self.compiled_model is not None and model is self.compiled_model[0]:
            model = self.compiled_model[1]
        with attack_mode(model, self.bn), torch.no_grad():
            target = log_softmax(model(x)) if self.relative else y
            if self.restarts > 1:
                return self._best_of(model, out, x, y, target, key)
            self._first(out, x, start, key, draw=0)
            finite, last = self._run(model, out, x, y, target)
            if gradient is not None:
                gradient.copy_(last)
        check_finite(finite)
        return out

    def _first(self, x_adv: Tensor, x: Tensor, start: Tensor | None, key: Key | None, draw: int) -> Tensor:
        if start is not None:
            return x_adv.copy_(start)
        if not self.random_start:
            return x_adv.copy_(x)
        return self.threat.project_(torch.add(x, self.threat.uniform(x, key, draw=draw), out=x_adv), x)

    def _run(self, model: nn.Module, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        if self.replay is None or self.early_stop:
            return self._ascend(model, *tensors)
        form = id(model), self.threat, self.step_size, self.steps, self.loss, self.bn
        return self.replay(form, partial(self._ascend, model), *tensors)

    def _ascend(self, model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Moves x_adv in place; returns a number that is finite if all was well, and the gradient of the last step."""
        active = x_adv, x, y, target  # tensors of the moving examples, rows `indices` of the batch
        indices = None
        finite = 0.0
        for _ in range(self.steps):
            grad, losses, logits = input_grad(model, active[0], self.loss, active[3])
            # The gradient too: a nan in it moves nothing, and the example would pass for a robust one.
            finite = finite + losses.sum() + grad.sum()
            if self.early_stop:
                keep = logits.argmax(dim=1) == active[2]
                if not keep.all():
                    if indices is not None:
                        x_adv[indices] = active[0]
                    indices = keep.nonzero().flatten() if indices is None else indices[keep]
                    active, grad = tuple(t[keep] for t in active), grad[keep]
                    if len(indices) == 0:
                        break
            self.threat.step_(active[0], grad, active[1], self.step_size)
        if indices is not None:
            x_adv[indices] = active[0]
        return finite, grad

    def _best_of(self, model: nn.Module, out: Tensor, x: Tensor, y: Tensor, target: Tensor, key: Key) -> Tensor:
        """Of all restarts the best point of every example, written to out."""
        together = self.restarts if self.bn == "eval" else 1
        best = None
        for first in range(0, self.restarts, together):
            runs = [self._first(empty_dense(x), x, None, key, draw) for draw in range(first, first + together)]
            x_adv = torch.cat(runs)
            many = [torch.cat([t] * together) for t in (x, y, target)]
            check_finite(self._ascend(model, x_adv, *many)[0])
            score = self._score(model, x_adv, *many[1:]).view(together, -1)
            top, run = score.max(dim=0)
            chosen = x_adv.view(together, *x.shape)[run, torch.arange(len(x), device=x.device)]
            if best is None:
                best = top
                out.copy_(chosen)
            else:
                better = (top > best).view(-1, *[1] * (x.dim() - 1))
                out.copy_(torch.where(better, chosen, out))
                best = torch.maximum(top, best)
        return out

    def _score(self, model: nn.Module, x_adv: Tensor, y: Tensor, target: Tensor) -> Tensor:
        logits = model(x_adv)
        fooled = logits.argmax(dim=1) != y
        # arctan is increasing and below pi/2: the loss decides among equals, never across.
        return fooled.double() * 4 + self.loss(logits, target).double().arctan()


class FGSM(PGD):
    """One step of size eps from x itself (Goodfellow et al. 2015); arguments as for PGD."""

    def __init__(self, eps: float, *, norm: str = "linf", loss: str = "ce", bn: str = "eval"):
        super().__init__(eps, eps, 1, norm=norm, loss=loss, random_start=False, bn=bn)


class CW(PGD):
    """PGD on the loss of Carlini & Wagner 2017, 30 steps of eps / 10 (as in Wang et al. 2019, Sec. 5.1)."""

    def __init__(self, eps: float, *, steps: int = 30, norm: str = "linf", bn: str = "eval"):
        super().__init__(eps, eps / 10, steps, norm=norm, loss="cw", bn=bn)
