"""Projected gradient descent (Madry et al. 2018) in L-infinity and L2, and FGSM and C&W as its special cases."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, Model
from pyengm.attacks.losses import log_softmax, loss_named
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key


class Runner(Protocol):
    """Runs the passes of an attack. `EagerRunner` runs them as they are; a trainer has faster ones."""

    def module_for(self, model: nn.Module) -> nn.Module:
        """The module that the attack calls in place of the model, such as the same model compiled.

        Args:
            model: The model that the attack was given. Its state (see `attack_mode`) is set on what is returned.

        Returns:
            A module with the outputs and the parameters of the model.
        """
        ...

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], settings: Hashable, x_adv: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns function(x_adv, *others), which changes x_adv in place.

        Args:
            function: All steps of an attack. It draws no random numbers and does not make the host wait for a GPU.
            settings: Everything that the function depends on, except the contents of the tensors and of the parameters.
            x_adv: (n, ...) the iterates.
            others: Tensors of n rows each, which stay as they are.
        """
        ...


class EagerRunner:
    """Runs every pass as it is."""

    def module_for(self, model: nn.Module) -> nn.Module:
        """Returns the model itself."""
        return model

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], settings: Hashable, x_adv: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Calls the function; arguments as for `Runner`."""
        return function(x_adv, *others)


EAGER = EagerRunner()


class PGD:
    """Projected gradient descent (PGD): steps up the loss, each followed by a projection to the threat model.

    The projection is to the eps-ball around x and then to [0, 1].

    Args:
        eps: Radius of the ball, in pixel units, such as 8/255.
        step_size: Size of a step, in pixel units.
        steps: Number of forward-backward passes.
        norm: "linf" (sign steps) or "l2" (steps along the gradient of the example, divided by its norm).
        loss: "ce", "margin", "cw", "kl", the divergence of the outputs from those on x, which uses no labels, or
            "targeted", for which y are the labels that the attack aims at.
        random_start: Whether to begin at a uniform point of the ball instead of at x.
        restarts: Number of independent runs. Each example keeps the best of them: a run that fools the model is better
            than one that does not, then the larger loss decides.
        early_stop: Whether an example that is misclassified leaves the batch and stays as it is.
        bn: Mode of the model during the attack, "eval", "train" or "batch_stats" (see `attack_mode`). With "eval" the
            restarts run as one batch. In the other modes the examples of a batch depend on each other, and the restarts
            run one after another.

    Attributes:
        takes_probabilities: Whether labels may be probabilities: with loss "ce" or "kl", and without restarts and
            early_stop, which ask whether an example is misclassified.
        runner: Runs the passes, eagerly unless set (see `Runner`). With restarts or early_stop, only its `module_for`
            is used.
        counts_correct: Whether the attack counts, for every example, the points at which it took a gradient and the
            example was classified right; not with restarts or early_stop. False unless set.
        correct: (n,) int64, these numbers, of the last call.

    Raises:
        ConfigError: For values and names out of range, and for early_stop where the examples are not independent.

    References:
        Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> x_adv = pyengm.attacks.PGD(eps=8 / 255, step_size=2 / 255, steps=10)(model, x, y)
        >>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """

    runner: Runner = EAGER
    counts_correct = False
    correct: Tensor | None = None
    keyed = True  # takes key=, which selects the random numbers
    samples = 1  # passes for each step, see `EOTPGD`

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
                f"early_stop with bn={bn!r} would change the batch statistics of the remaining examples: use bn='eval'"
            )
        self.step_size, self.steps, self.random_start, self.restarts = step_size, steps, random_start, restarts
        self.relative, self.targeted, self.early_stop, self.bn = loss == "kl", loss == "targeted", early_stop, bn
        self.takes_probabilities = loss in ("ce", "kl") and restarts == 1 and not early_stop

    @torch.inference_mode(False)
    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        start: Tensor | None = None,
        key: Key | None = None,
        out: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor:
        """Computes adversarial examples.

        Args:
            model: Maps images to logits (n, k), a module or another function. It is left as it was.
            x: (n, ...) images in [0, 1].
            y: (n,) int64 labels; or (n, k) probabilities of the classes, as of mixup, where `takes_probabilities`.
            start: (n, ...) first iterate in place of the random one; outside the ball the first step projects it.
            key: Selects the random numbers; None takes a fresh seed from torch's default generator.
            out: (n, ...) buffer for the result, contiguous or channels_last, other memory than x; None allocates one.
            gradient: (n, ...) buffer for the gradient of sum_i loss_i that the last step followed, at the iterate
                before it. AENGM and NENGM can weigh by it at no cost (`backward(losses, input_gradient=gradient)`).
                Not with restarts or early_stop.

        Returns:
            A tensor like x that requires no gradient.

        Raises:
            ConfigError: For start with restarts, and for gradient with restarts or early_stop or of another shape.
            DataError: For x outside [0, 1] or not finite, labels without a logit, or shapes that do not fit.
            ModelError, NonFiniteError: When the model returns no logits (n, k), or its loss or gradient is not finite.
        """
        x, y = check_batch(x, y, soft=self.takes_probabilities)
        check_extras(x, start, key, out)
        self._check_options(x, start, gradient)
        if start is not None or not self.random_start:
            key = None  # no random numbers are needed
        elif key is None:
            key = Key.fresh(len(x), x.device)
        out = empty_dense(x) if out is None else out
        model = self.runner.module_for(model) if isinstance(model, nn.Module) else model
        with attack_mode(model, self.bn), torch.no_grad():
            net = CheckedModel(model, y)
            target = log_softmax(net(x)) if self.relative else y
            if key is not None and self.restarts > 1:
                return self._best_of(net, out, x, y, target, key)
            self._initialize(out, x, start, key)
            runner = EAGER if self.early_stop else self.runner  # its batches shrink as the outputs of the model decide
            finite, last, correct = runner(partial(self._ascend, net), self._settings(model), out, x, y, target)
            self.correct = correct.clone() if self.counts_correct else None
            if gradient is not None:
                gradient.copy_(last)
        check_finite(finite)
        return out

    def _settings(self, model: Model) -> tuple[Any, ...]:
        """All that `_ascend` depends on besides its tensors."""
        numbers = (self.step_size, self.steps, self.samples, self.counts_correct)
        return (id(model), self.threat, self.loss, self.bn, *numbers)

    def _check_options(self, x: Tensor, start: Tensor | None, gradient: Tensor | None) -> None:
        if start is not None and self.restarts > 1:
            raise ConfigError("restarts from one given start would all be the same; drop start or set restarts=1")
        if self.counts_correct and (self.restarts > 1 or self.early_stop):
            raise ConfigError("counts_correct is for attacks without restarts or early_stop")
        if gradient is not None and (self.restarts > 1 or self.early_stop or gradient.shape != x.shape):
            raise ConfigError(
                f"gradient is for attacks without restarts or early_stop and has the shape of x, {tuple(x.shape)}; got "
                f"{self.restarts} restarts, early_stop={self.early_stop} and {tuple(gradient.shape)}"
            )

    def _initialize(self, x_adv: Tensor, x: Tensor, start: Tensor | None, key: Key | None, draw: int = 0) -> Tensor:
        """Writes the first iterate to x_adv: start, or else x, or with a key a random point."""
        if key is None:
            return x_adv.copy_(x if start is None else start)
        return self.threat.project_(torch.add(x, self.threat.uniform(x, key, draw=draw), out=x_adv), x)

    def _ascend(self, net: CheckedModel, x_adv: Tensor, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Moves x_adv in place.

        Returns a scalar that is finite if all was well, the gradient of the last step, and `correct`, which is 0
        unless the attack counts.
        """
        active = x_adv, x, y, target  # tensors of the moving examples, rows `indices` of the batch
        indices = None
        sums, grad, correct = [], x_adv, torch.zeros(len(y), dtype=torch.int64, device=y.device)
        for _ in range(self.steps):
            grad, losses, logits = self._gradient(net, active[0], active[3])
            if self.counts_correct:
                correct += logits.argmax(dim=1) == (y.argmax(dim=1) if y.is_floating_point() else y)
            # The gradient too: a nan in it moves nothing, and the example would pass for a robust one.
            sums.append(losses.sum() + grad.sum())
            if self.early_stop:
                keep = ((logits.argmax(dim=1) == active[2]) != self.targeted).nonzero().flatten()
                if len(keep) < len(active[0]):  # the one time in a step that the host waits
                    if indices is not None:
                        x_adv[indices] = active[0]
                    indices = keep if indices is None else indices[keep]
                    active, grad = tuple(t[keep] for t in active), grad[keep]
                    if len(indices) == 0:
                        break
            self.threat.step_(active[0], grad, active[1], self.step_size)
        if indices is not None:
            x_adv[indices] = active[0]
        return torch.stack(sums).sum(), grad, correct

    def _gradient(self, net: CheckedModel, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient, the losses and the logits at x; subclasses change it."""
        return input_grad(net, x, self.loss, target)

    def _best_of(self, net: CheckedModel, out: Tensor, x: Tensor, y: Tensor, target: Tensor, key: Key) -> Tensor:
        """Writes the best point of every example among all restarts to out."""
        together = self.restarts if self.bn == "eval" else 1
        best = None
        for first in range(0, self.restarts, together):
            runs = [self._initialize(empty_dense(x), x, None, key, draw) for draw in range(first, first + together)]
            x_adv = torch.cat(runs)
            many = [torch.cat([t] * together) for t in (x, y, target)]
            check_finite(self._ascend(net, x_adv, *many)[0])
            score = self._score(net, x_adv, *many[1:]).view(together, -1)
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

    def _score(self, net: CheckedModel, x_adv: Tensor, y: Tensor, target: Tensor) -> Tensor:
        logits = net(x_adv)
        fooled = (logits.argmax(dim=1) != y) != self.targeted
        # arctan is increasing and below pi/2, so the loss decides only between runs that agree on `fooled`.
        return fooled.double() * 4 + self.loss(logits, target).double().arctan()


class FGSM(PGD):
    """The fast gradient sign method (FGSM): one step of size eps from x itself.

    Args:
        eps: Radius of the ball and size of the step, in pixel units.
        norm: As for `PGD`.
        loss: As for `PGD`.
        bn: As for `PGD`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples".

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> pyengm.attacks.FGSM(8 / 255)(model, x, y).shape
        torch.Size([4, 3, 4, 4])
    """

    def __init__(self, eps: float, *, norm: str = "linf", loss: str = "ce", bn: str = "eval"):
        super().__init__(eps, eps, 1, norm=norm, loss=loss, random_start=False, bn=bn)


class CW(PGD):
    """PGD on the loss of Carlini & Wagner 2017, with steps of eps / 10.

    Args:
        eps: Radius of the ball, in pixel units.
        steps: Number of forward-backward passes.
        norm: As for `PGD`.
        bn: As for `PGD`.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", f_6; 30 steps of eps / 10: Wang
        et al. 2019, "On the Convergence and Robustness of Adversarial Training", Sec. 5.1.
    """

    def __init__(self, eps: float, *, steps: int = 30, norm: str = "linf", bn: str = "eval"):
        super().__init__(eps, eps / 10, steps, norm=norm, loss="cw", bn=bn)
