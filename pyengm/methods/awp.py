"""AWP: adversarial weight perturbation (Wu et al. 2020) on top of a method with an attack."""

import math

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod, Method
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.mart import MART
from pyengm.methods.moved_weights import MovedWeights
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import register_method
from pyengm.methods.trades import TRADES
from pyengm.utils import foreach


class AWP(MovedWeights):
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

    label = "AWP"

    def __init__(self, base: AttackMethod, gamma: float, *, warmup: int = 0):
        super().__init__(base)
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ConfigError(f"gamma is {gamma}; expected a finite number >= 0, such as 0.01")
        if warmup < 0:
            raise ConfigError(f"warmup is {warmup}; expected a number of epochs >= 0")
        self.gamma, self.warmup = gamma, warmup

    def _moves(self) -> bool:
        return self.epoch >= self.warmup and self.gamma > 0

    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        weights = self._weights(model)
        grads = self._gradient(model, weights, x, x_adv, y)
        norms = self._divisor(torch.stack(foreach.norm(grads)))
        scales = self.gamma * torch.stack(foreach.norm([w.detach() for w in weights])) / norms
        return weights, [g * scale for g, scale in zip(grads, scales, strict=True)]

    def _weights(self, model: nn.Module) -> list[Tensor]:
        """The weights that may move. Raises ConfigError where there are none, or they are sharded."""
        weights: list[Tensor] = [
            p for name, p in model.named_parameters() if "weight" in name and p.dim() >= 2 and p.requires_grad
        ]
        if not weights:
            raise ConfigError("AWP found no weights of two or more dimensions that are trained; use its base alone")
        return self._whole(weights)


def pgd_of(method: Method) -> PGD | None:
    """The attack of a method whose whole attack is one call of PGD, None for other methods."""
    attack = getattr(method.base if isinstance(method, MovedWeights) else method, "attack", None)
    return attack if method.info.is_pgd and isinstance(attack, PGD) else None


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
