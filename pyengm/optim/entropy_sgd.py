"""Entropy-SGD: momentum SGD on the local entropy of the loss, which an inner loop estimates."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengm.errors import ConfigError
from pyengm.optim.base import PerExampleSGD
from pyengm.optim.gaussian_noise import GaussianNoise
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.optim.sgld import SGLD
from pyengm.pergrad import any_sharded
from pyengm.utils import foreach

BUFFER_RULES = ("restore", "average")
Closure = Callable[[], Tensor | tuple[Tensor, Callable[[], None]]]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@register_optimizer
class EntropySGD(PerExampleSGD):
    """theta <- theta - lr (G after weight decay and momentum), with G = theta - mu; mu is the mean of an inner loop.

    `step(closure)` calls closure inner_steps times (the L of the papers); each call draws the next mini-batch, attacks
    it where that is wanted, and returns its per-example losses (n,). The inner loop starts at x' = mu = theta with its
    momentum at 0. With d the gradient of the mean loss at x' after weight decay and momentum,
    x' <- x' - inner_lr (d - gamma (theta - x')) + noise sqrt(2 inner_lr) N(0, I),
    mu <- averaging mu + (1 - averaging) x'.

    gamma is scoped: gamma0 (1 + gamma1)^t at outer step t, steps in epochs of plain SGD not counted.
    inner_steps, inner_lr, averaging, noise, gamma0, gamma1, t and as_published may be changed at any time; inner_lr,
    averaging, noise, gamma0 and gamma1 may differ by parameter group. A GradScaler does not work with closures: train
    in bfloat16.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate of the outer loop alone, which schedules change.
        momentum: Momentum of both loops.
        weight_decay: Weight decay of both loops.
        inner_steps: Inner steps of an outer step; 0 is plain SGD, one closure a step, and so is everything after
            `switch_to_sgd()`.
        inner_lr: Learning rate of the inner loop.
        averaging: Share of the old mu.
        noise: Scale of the noise.
        gamma0: Strength of the elastic force from x' to theta at the first outer step.
        gamma1: Growth of that strength with every outer step.
        nesterov: Whether momentum is Nesterov's, in both loops.
        from_epoch: First epoch, counted from 0, with an inner loop; steps of earlier epochs are plain SGD's, and
            `start_epoch(epoch)` must be called for every epoch then.
        until_epoch: First epoch of plain SGD after those with an inner loop; None: there is none. `start_epoch(epoch)`
            must be called for every epoch then.
        as_published: As in the authors' Python code, one more closure opens every step; its loss is returned, and its
            gradient starts the outer momentum. (Their count t stays at 0; gamma1 = 0 gives that.)
        buffers: Batch-norm statistics, such as model.buffers(). Without them, these follow the inner steps as in the
            authors' code.
        buffer_rule: "average" averages the buffers like mu; "restore" resets them to their values from before the inner
            loop, for callers who estimate them anew (torch.optim.swa_utils.update_bn).
        seed: Seed of the noise, the same in all processes of a run.
        t: Outer steps that were taken before.
        epoch: The current epoch, which `start_epoch` sets; None before that.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: A value is out of range.

    References:
        Chaudhari et al. 2017, Alg. 1; adversarial closures: Kanai et al. 2021, Sec. 4; epochs of SGD: App. E.3 and
        F.2.1.
    """

    info = OptimizerInfo(
        name="entropy_sgd",
        title="local entropy of the loss, first order",
        reference="Chaudhari et al. 2017, Kanai et al. 2021",
        takes_closure=True,
        epoch_options={"from_epoch": 0, "until_epoch": 1},
    )

    stateful_attributes = ("normals",)
    powers: ClassVar[int] = 1
    inner_steps = Hyperparameter("a whole number >= 0", lambda value: value >= 0 and value == int(value))
    t = Hyperparameter("a whole number >= 0", lambda value: value >= 0 and value == int(value))
    epoch = Hyperparameter("a whole number >= 0, or None", lambda value: value is None or _is_count(value))
    from_epoch = Hyperparameter("a whole number >= 0", _is_count)
    until_epoch = Hyperparameter(
        "a whole number >= 1, or None", lambda value: value is None or (_is_count(value) and value > 0)
    )
    as_published = Hyperparameter("True or False", lambda value: isinstance(value, bool))
    inner_lr = Hyperparameter("a number > 0", lambda value: 0 < value < float("inf"), joint=False)
    averaging = Hyperparameter("a number >= 0 and < 1", lambda value: 0 <= value < 1, joint=False)
    noise = Hyperparameter("a finite number >= 0", lambda value: 0 <= value < float("inf"), joint=False)
    gamma0 = Hyperparameter("a finite number >= 0", lambda value: 0 <= value < float("inf"), joint=False)
    gamma1 = Hyperparameter("a finite number >= 0", lambda value: 0 <= value < float("inf"), joint=False)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        averaging: float = 0.75,
        noise: float = 1e-4,
        gamma0: float = 0.03,
        gamma1: float = 0.0,
        nesterov: bool = True,
        from_epoch: int = 0,
        until_epoch: int | None = None,
        as_published: bool = False,
        buffers: Iterable[Tensor] = (),
        buffer_rule: str = "average",
        seed: int = 0,
        t: int = 0,
        epoch: int | None = None,
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, nesterov=nesterov, **sgd_options)
        if any(group["maximize"] for group in self.param_groups):
            raise ConfigError(
                f"{type(self).__name__} minimises: the local entropy of a loss to be maximised is another one"
            )
        if buffer_rule not in BUFFER_RULES:
            raise ConfigError(f"buffer_rule is {buffer_rule!r}; known: {', '.join(BUFFER_RULES)}")
        self._define(inner_steps=inner_steps, t=t, as_published=as_published, inner_lr=inner_lr)
        self._define(averaging=averaging, noise=noise)
        self._define(gamma0=gamma0, gamma1=gamma1, epoch=epoch, from_epoch=from_epoch, until_epoch=until_epoch)
        if until_epoch is not None and from_epoch >= until_epoch:
            raise ConfigError(
                f"from_epoch and until_epoch are {from_epoch} and {until_epoch}; expected the epoch that begins with "
                "inner loops and, above it, the one that ends them; inner_steps=0 is plain SGD throughout"
            )
        self.buffers, self.buffer_rule = list(buffers), buffer_rule
        self.normals = GaussianNoise(seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if any_sharded(self.param_groups[-1]["params"]):
            raise ConfigError(
                f"the inner loop of {type(self).__name__} needs whole parameters, and these are sharded over "
                "processes; use DistributedDataParallel"
            )

    @property
    def current_inner_steps(self) -> int:
        """The inner steps of an outer step in the current epoch: inner_steps, or 0 where the step is one of plain SGD.

        Raises RuntimeError where from_epoch or until_epoch were given and `start_epoch` was not called.
        """
        return self.inner_steps if self._has_inner_loop(self.epoch) else 0

    @property
    def closures_per_step(self) -> int:
        """The number of mini-batches that an outer step draws in the current epoch; raises as `current_inner_steps`."""
        inner_steps = self.current_inner_steps
        return inner_steps + self.as_published if inner_steps else 1

    def start_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 0. Where that switches to SGD or from it, momentum restarts at 0."""
        before, self.epoch = self.epoch, epoch
        if self.inner_steps and before is not None and self._has_inner_loop(before) != self._has_inner_loop(epoch):
            self._clear_momentum()

    def switch_to_sgd(self) -> None:
        """Makes every further step one of plain SGD; its momentum restarts at 0, for gradients of another size."""
        self.inner_steps = 0
        self._clear_momentum()

    @torch.no_grad()
    def step(self, closure: Closure | None = None, *, inner_steps: int | None = None) -> Tensor | None:
        """One outer step from inner_steps mini-batches.

        Where closure raises, the parameters and the given buffers are reset to their values before the step.

        Args:
            closure: Returns the losses (n,) of a new mini-batch with their graph, and leaves the parameters as they
                are; or it returns (losses, restore), where restore() reverts what it did to the parameters, such as a
                weight perturbation (AWP), and is called right after the backward pass.
            inner_steps: Inner steps of this step alone, in place of the attribute, where fewer mini-batches remain in
                an epoch; 0 makes it a step of plain SGD. Epochs of plain SGD allow only 0.

        Returns:
            The mean loss, detached; None without a closure.

        Raises:
            RuntimeError: There is no closure, and gradients that are not all 0, or none.
            ValueError: inner_steps is negative, or not 0 in an epoch of plain SGD.
        """
        if closure is None and self._at_rest():
            self._torch_step()  # along 0, by which torch.distributed.checkpoint creates the state
            return None
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__} draws its own mini-batches: call step(closure), "
                "where closure() returns the per-example losses of the next one"
            )
        steps = self._check_inner_steps(inner_steps)
        if steps == 0:
            loss = self._descend(closure)
        else:
            opening = self._open(closure) if self.as_published else None
            inner = self._inner_loop(closure, steps)
            loss = inner if opening is None else opening
        self._torch_step()
        self.t += self._has_inner_loop(self.epoch)
        return loss

    def _at_rest(self) -> bool:
        """Whether there are gradients, and all are 0."""
        grads = [p.grad for p in self._parameters()]
        return any(g is not None for g in grads) and not any(g is not None and g.any() for g in grads)

    def _check_inner_steps(self, given: int | None) -> int:
        current = self.current_inner_steps
        if given is None:
            return current
        if not _is_count(given) or (given and not current):
            expected = "a whole number >= 0" if current else "0, as this is a step of plain SGD"
            raise ValueError(f"inner_steps of the step is {given!r}; expected {expected}")
        return given

    def _has_inner_loop(self, epoch: int | None) -> bool:
        """Whether steps of that epoch (None: `start_epoch` was not called) have an inner loop."""
        if epoch is None:
            if self.from_epoch > 0 or self.until_epoch is not None:
                raise RuntimeError(
                    f"{type(self).__name__} has from_epoch={self.from_epoch} and until_epoch={self.until_epoch}, and "
                    "needs the epoch: call start_epoch(epoch), counted from 0, before the batches of each"
                )
            return True
        return self.from_epoch <= epoch and (self.until_epoch is None or epoch < self.until_epoch)

    def _clear_momentum(self) -> None:
        for state in self.state.values():
            state.pop("momentum_buffer", None)

    def _descend(self, closure: Closure) -> Tensor:
        """Computes the gradient of the next mini-batch, in .grad; returns its mean loss."""
        self.zero_grad()
        with torch.enable_grad():
            drawn = closure()
            losses, restore = drawn if isinstance(drawn, tuple) else (drawn, lambda: None)
            try:
                self.backward(losses)
            finally:
                restore()
        self._count_grads()
        return losses.detach().mean()

    def _open(self, closure: Closure) -> Tensor:
        loss = self._descend(closure)
        for p in self._parameters():
            if p.grad is not None and not self._has_momentum(p):
                self.state[p]["momentum_buffer"] = p.grad.clone()
        return loss

    def _has_momentum(self, p: Tensor) -> bool:
        momentum = self.state[p].get("momentum_buffer")
        return momentum is not None and bool(momentum.any())  # of 0 after a step along 0, see `_at_rest`

    def _inner_loop(self, closure: Closure, steps: int) -> Tensor:
        """Leaves theta - mu in .grad, and the parameters at theta; returns the mean loss of the inner steps."""
        loops = [SGLD(group, self._gamma(group), self.powers) for group in self.param_groups]
        before = [buffer.clone() for buffer in self.buffers]
        averages = [buffer.clone() for buffer in self.buffers]
        losses = []
        try:
            for _ in range(steps):
                losses.append(self._descend(closure))
                for loop in loops:
                    loop.step(self.normals.like(loop.params) if loop.group["noise"] and loop.params else None)
                self._average(averages)
        except BaseException:
            self._set_buffers(before)
            raise
        finally:
            for loop in loops:
                loop.restore()
        self._set_buffers(averages if self.buffer_rule == "average" else before)
        for loop in loops:
            for p, gradient in zip(loop.params, self._outer_gradient(loop), strict=True):
                p.grad = gradient
        return torch.stack(losses).mean()

    def _gamma(self, group: dict[str, Any]) -> float:
        return group["gamma0"] * (1 + group["gamma1"]) ** self.t

    def _outer_gradient(self, loop: SGLD) -> list[Tensor]:
        return list(foreach.neg(loop.averages[0]))

    def _average(self, averages: list[Tensor]) -> None:
        for average, buffer in zip(averages, self.buffers, strict=True):
            if buffer.is_floating_point():
                average.lerp_(buffer, 1 - self.averaging)
            else:  # a count
                average.copy_(buffer)

    def _set_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"buffers": self.buffers, "buffer_rule": self.buffer_rule}
