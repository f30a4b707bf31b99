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
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.mart import MART
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import register_method
from pyengm.methods.trades import TRADES
from pyengm.ops import Key
from pyengm.pergrad import any_sharded
from pyengm.utils import foreach
from pyengm.utils.checks import require
from pyengm.utils.distributed import all_reduce_sum_many


class AWP(AttackMethod):
    """The losses L_i of `base` at the weights w + v, v an ascent step on their mean with a norm relative to that of w.

    The attack of `base` runs at w. Then, with g the gradient of (1/n) sum_i L_i, v = gamma ||w|| g / ||g|| for each
    tensor w of two or more dimensions with "weight" in its name (convolutions and linear layers), with norms over the
    whole tensor; biases and batch norm stay. g is taken in training mode and leaves the running statistics of batch
    norm as they are. The graph of the step output is at w + v, and so is the optimiser's step, weight decay included,
    as in the authors' code; `undo` then subtracts v, up to rounding. After an error the weights are w.

    Args:
        base: A method with an attack, such as PGDAT or TRADES.
        gamma: The norm of v relative to that of w, >= 0.
        warmup: The number of epochs at the start without v; the epoch is that of `start_epoch`, or else of the key.

    Raises:
        ConfigError: A value is out of range, the base has no attack, or the model has no such weights.
        NonFiniteError: g is not finite.

    References:
        Wu et al. 2020, Sec. 4.
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
        self.epoch_is_given = False  # by start_epoch
        self.threat = base.threat
        self.info = replace(
            self.info,
            is_pgd=base.info.is_pgd,
            double_backward=base.info.double_backward,
            modifies_grads=base.info.modifies_grads,
        )

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
        if key is not None and not self.epoch_is_given:
            self.epoch = key.epoch
        return self.base.key_for(x, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.base.perturb(model, x, y, key, transform)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        if self.epoch < self.warmup or self.gamma == 0:
            return self.base.outcome(model, x, x_adv, y)
        weights, moves = self._ascent(model, x, x_adv, y)

        @torch.no_grad()
        def undo() -> None:
            foreach.sub_(weights, moves)
            torch.clear_autocast_cache()

        with torch.no_grad():
            foreach.add_(weights, moves)
        torch.clear_autocast_cache()  # a caller's autocast may hold the previous weights in 16 bits
        try:
            return replace(self.base.outcome(model, x, x_adv, y), undo=undo)
        except BaseException:
            undo()
            raise

    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights that change, and v for each."""
        weights: list[Tensor] = [
            p for name, p in model.named_parameters() if "weight" in name and p.dim() >= 2 and p.requires_grad
        ]
        if not weights:
            raise ConfigError("AWP found no weights of two or more dimensions that are trained; use its base alone")
        if any_sharded(weights):
            raise ConfigError("AWP moves whole weights, and these are sharded; use DistributedDataParallel")
        with running_statistics_kept(model), torch.enable_grad():
            # The gradient of the sum has the direction of the mean's, and does not underflow in half precision.
            total = self.base.outcome(model, x, x_adv, y).losses.sum()
            grads = all_reduce_sum_many(torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True))
        norms = torch.stack(foreach.norm(grads))
        require(norms.sum().isfinite(), _not_finite)
        norms = norms.where(norms > 0, 1.0)  # no gradient, no move
        scales = self.gamma * torch.stack(foreach.norm([w.detach() for w in weights])) / norms
        return weights, [g * scale for g, scale in zip(grads, scales, strict=True)]

    def prepare(self, dataset: DatasetSpec) -> None:
        self.base.prepare(dataset)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.epoch_is_given = epoch, True
        self.base.start_epoch(model, epoch)

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        return self.base.finish_epoch(model, metrics)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.base.before_step(model, optimizer)

    def buffers(self) -> Mapping[str, PerExampleBuffer]:
        return self.base.buffers()

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "base": self.base.extra_state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.epoch_is_given = state["epoch"], True
        self.base.load_extra_state(state["base"])


def _not_finite() -> NonFiniteError:
    return NonFiniteError("the gradient that AWP follows is nan or infinite; check the outputs of the model")


def _short_warmup(run: ShortRun) -> dict[str, tuple[str, ...]]:
    """Weight perturbations from the start keep a network from learning anything in a short run."""
    return {"method_options": (f"warmup={run.epochs // 4}",)}


@register_method
class PGDATAWP(AWP):
    """AWP on PGD adversarial training, see `AWP` and `PGDAT`.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        gamma: Norm of the weight perturbation relative to that of the weights, >= 0.
        warmup: Epochs at the start without weight perturbation.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wu et al. 2020, AT-AWP.
    """

    info = MethodInfo(
        name="pgd_at_awp",
        title="weight perturbations on PGD adversarial training",
        reference="Wu et al. 2020",
        passes=PassCounts(2, 2, 2, per_step=True),
        recipe={"model": "preact_resnet18", "epochs": 200, "milestones": (100, 150)},
        short_recipe=_short_warmup,
        epoch_options={"warmup": 0},
        is_pgd=True,
    )

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


@register_method
class TRADESAWP(AWP):
    """AWP on TRADES, after ten epochs without; see `AWP` and `TRADES`.

    v is an ascent step on the whole loss, the natural part included, as in the authors' code.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        beta: Weight of the divergence.
        gamma: Norm of the weight perturbation relative to that of the weights, >= 0.
        warmup: Epochs at the start without weight perturbation.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval", "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wu et al. 2020, TRADES-AWP.
    """

    info = MethodInfo(
        name="trades_awp",
        title="weight perturbations on TRADES",
        reference="Wu et al. 2020",
        passes=PassCounts(5, 4, 4, per_step=True),
        recipe={"epochs": 200, "milestones": (100, 150)},
        short_recipe=_short_warmup,
        epoch_options={"warmup": 0},
        is_pgd=True,
    )

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


@register_method
class MARTAWP(AWP):
    """AWP on MART, after ten epochs without; see `AWP` and `MART`.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        beta: Weight of the divergence.
        gamma: Norm of the weight perturbation relative to that of the weights, >= 0.
        warmup: Epochs at the start without weight perturbation.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code of MART, "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Wu et al. 2020, MART-AWP.
    """

    info = MethodInfo(
        name="mart_awp",
        title="weight perturbations on MART",
        reference="Wu et al. 2020",
        passes=PassCounts(4, 4, 4, per_step=True),
        recipe={"epochs": 200, "milestones": (100, 150)},
        short_recipe=lambda run: {"lr": run.lr / 4, **_short_warmup(run)},
        epoch_options={"warmup": 0},
        is_pgd=True,
        own_labels=MART.info.own_labels,
    )

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
