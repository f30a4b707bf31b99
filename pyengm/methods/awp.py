"""AWP: adversarial weight perturbation (Wu et al. 2020) on top of a method with an attack."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks.model_state import running_statistics_kept
from pyengm.data import Transform
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods.base import AttackMethod, DatasetSpec, StepOutput
from pyengm.methods.mart import MART
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.trades import TRADES
from pyengm.ops import Key
from pyengm.utils.checks import require
from pyengm.utils.distributed import all_reduce_sum_many


class AWP(AttackMethod):
    """The losses L_i of `base` at the weights w + v, with v up the gradient of their mean, of a size relative to w.

    The attack of `base` sees w. Then, with g the gradient of (1/n) sum_i L_i, v = gamma ||w|| g / ||g|| for each
    tensor w of two or more dimensions with "weight" in its name (convolutions and linear layers), norms over the whole
    tensor; biases and batch norm stay. g is taken in the mode of training and touches no running statistics of batch
    norm. The outcome's graph is at w + v, and so is the optimiser's step, weight decay included, as in the authors'
    code; `undo` then takes v off, to rounding.
    base: such as PGDAT or TRADES. gamma: the size of v relative to w, >= 0.
    warmup: the epochs at the start that go without; `start_epoch` says which epoch it is, else the key.
    Raises ConfigError for numbers out of range, a base without an attack, and models with no such weights;
    NonFiniteError where g is not finite. After an error the weights are where they were.
    Source: Wu et al. 2020, Sec. 4.
    """

    def __init__(self, base: AttackMethod, gamma: float, *, warmup: int = 0):
        if not isinstance(base, AttackMethod) or isinstance(base, AWP):
            kind = type(base).__name__
            raise ConfigError(f"the base of AWP is {kind}; expected a method with an attack, and without AWP")
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ConfigError(f"gamma is {gamma}; expected a finite number >= 0, such as 0.01")
        if warmup < 0:
            raise ConfigError(f"warmup is {warmup}; expected a number of epochs >= 0")
        self.base, self.gamma, self.warmup, self.epoch = base, gamma, warmup, 0
        self.told = False  # the epoch, by start_epoch
        self.threat, self.double_backward = base.threat, base.double_backward

    @property
    def needs_input_grad(self) -> bool:
        return self.base.needs_input_grad

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        self.base.needs_input_grad = value

    @property
    def label_smoothing(self) -> float:
        return self.base.label_smoothing

    @label_smoothing.setter
    def label_smoothing(self, share: float) -> None:
        self.base.label_smoothing = share

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        if key is not None and not self.told:
            self.epoch = key.epoch
        return self.base.key_for(x, key)

    @property
    def modifies_grads(self) -> bool:
        return self.base.modifies_grads

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.base.perturb(model, x, y, key, transform)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        if self.epoch < self.warmup or self.gamma == 0:
            return self.base.outcome(model, x, x_adv, y)
        weights, moves = self._ascent(model, x, x_adv, y)

        @torch.no_grad()
        def undo() -> None:
            torch._foreach_sub_(weights, moves)
            torch.clear_autocast_cache()

        with torch.no_grad():
            torch._foreach_add_(weights, moves)
        torch.clear_autocast_cache()  # a caller's autocast may hold the weights of before in 16 bits
        try:
            return replace(self.base.outcome(model, x, x_adv, y), undo=undo)
        except BaseException:
            undo()
            raise

    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights that move and by how much."""
        weights = [p for name, p in model.named_parameters() if "weight" in name and p.dim() >= 2 and p.requires_grad]
        if not weights:
            raise ConfigError("AWP found no weights of two or more dimensions that are trained; use its base alone")
        with running_statistics_kept(model), torch.enable_grad():
            # The sum: its gradient has the direction of the mean's, and is not lost in half precision.
            total = self.base.outcome(model, x, x_adv, y).losses.sum()
            grads = all_reduce_sum_many(torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True))
        lengths = torch.stack(torch._foreach_norm(grads))
        require(lengths.sum().isfinite(), _not_finite)
        lengths = lengths.where(lengths > 0, 1.0)  # no gradient, no move
        scales = self.gamma * torch.stack(torch._foreach_norm([w.detach() for w in weights])) / lengths
        return weights, [g * scale for g, scale in zip(grads, scales, strict=True)]

    def prepare(self, examples: DatasetSpec) -> None:
        self.base.prepare(examples)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.told = epoch, True
        self.base.start_epoch(model, epoch)

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        return self.base.finish_epoch(model, metrics)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.base.before_step(model, optimizer)

    def stores(self) -> Mapping[str, PerExampleBuffer]:
        return self.base.stores()

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "base": self.base.extra_state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.told = state["epoch"], True
        self.base.load_extra_state(state["base"])


def _not_finite() -> NonFiniteError:
    return NonFiniteError("the gradient that AWP follows is nan or infinite: look at the model's outputs")


class PGDATAWP(AWP):
    """AWP on PGD adversarial training; arguments as for PGDAT and AWP.

    bn: "train" as in the authors' code. Source: Wu et al. 2020, AT-AWP.
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        gamma: float = 0.01,
        warmup: int = 0,
        norm: str = "linf",
        bn: str = "train",
    ):
        super().__init__(PGDAT(eps, step_size, steps, norm=norm, bn=bn), gamma, warmup=warmup)


class TRADESAWP(AWP):
    """AWP on TRADES, after ten epochs without; arguments as for TRADES and AWP.

    v goes up the whole loss, the natural part included, as in the authors' code. Source: Wu et al. 2020, TRADES-AWP.
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        beta: float = 6.0,
        gamma: float = 0.005,
        warmup: int = 10,
        norm: str = "linf",
        bn: str = "eval",
    ):
        super().__init__(TRADES(eps, step_size, steps, beta=beta, norm=norm, bn=bn), gamma, warmup=warmup)


class MARTAWP(AWP):
    """AWP on MART, after ten epochs without; arguments as for MART and AWP. Source: Wu et al. 2020, MART-AWP."""

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        beta: float = 6.0,
        gamma: float = 0.005,
        warmup: int = 10,
        norm: str = "linf",
        bn: str = "eval",
    ):
        super().__init__(MART(eps, step_size, steps, beta=beta, norm=norm, bn=bn), gamma, warmup=warmup)
