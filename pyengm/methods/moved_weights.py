"""Losses of a method at moved weights, which AWP and SAM move by an ascent step."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks.model_state import running_statistics_kept
from pyengm.data import Transform
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.wrapper import Wrapper
from pyengm.ops import Key
from pyengm.pergrad import any_sharded
from pyengm.utils import foreach
from pyengm.utils.checks import require
from pyengm.utils.distributed import all_reduce_sum_many


class MovedWeights(Wrapper[AttackMethod], AttackMethod):
    """The losses L_i of `base` at the weights w + v.

    The attack of `base` runs at w. The graph of the step output is at w + v, so that an optimiser that clips each
    example sees the gradients there, with their norms. After an error the weights are w.

    Args:
        base: A method that is an attack and then losses, such as PGDAT or TRADES.

    Attributes:
        label: What messages call the method.
        undo_before_step: Whether the weights are w again before the optimiser's step, to the bit, or after it, where v
            is subtracted, up to rounding.

    Raises:
        ConfigError: The base has no attack, or moves weights itself.
    """

    label: str
    undo_before_step = False

    def __init__(self, base: AttackMethod):
        if not isinstance(base, AttackMethod) or isinstance(base, MovedWeights):
            kind = type(base).__name__
            raise ConfigError(
                f"the base of {self.label} is {kind}; expected a method with an attack, and without AWP or SAM"
            )
        super().__init__(base)
        self.threat = base.threat
        self.info = replace(
            self.info,
            is_pgd=base.info.is_pgd,
            double_backward=base.info.double_backward,
            modifies_grads=base.info.modifies_grads,
        )

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        self.follow(key)
        return self.base.key_for(x, key)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        return self.base.perturb(model, x, y, key, transform)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        if not self._moves():
            return self.base.outcome(model, x, x_adv, y)
        weights, moves = self._ascent(model, x, x_adv, y)
        before = [w.detach().clone() for w in weights] if self.undo_before_step else None

        @torch.no_grad()
        def undo() -> None:
            if before is None:
                foreach.sub_(weights, moves)
            else:
                foreach.copy_(weights, before)
            torch.clear_autocast_cache()

        with torch.no_grad():
            foreach.add_(weights, moves)
        torch.clear_autocast_cache()  # a caller's autocast may hold the previous weights in 16 bits
        try:
            output = self.base.outcome(model, x, x_adv, y)
        except BaseException:
            undo()
            raise
        return replace(output, undo=undo, undo_before_step=self.undo_before_step)

    @abstractmethod
    def _moves(self) -> bool:
        """Whether the weights move in this epoch."""

    @abstractmethod
    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights that change, and v for each."""

    def _gradient(
        self,
        model: nn.Module,
        weights: list[Tensor],
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        below: float | None = None,
    ) -> list[Tensor]:
        """The gradient of the sum of the base's losses, or of those below a number, over all processes.

        It has the direction of the mean's, and does not underflow in half precision. It is taken in training mode and
        leaves the running statistics of batch norm as they are.
        """
        with running_statistics_kept(model), torch.enable_grad():
            losses = self.base.outcome(model, x, x_adv, y).losses
            total = losses.sum() if below is None else (losses * (losses.detach() < below)).sum()
            return all_reduce_sum_many(torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True))

    def _whole(self, weights: list[Tensor]) -> list[Tensor]:
        """The weights. Raises ConfigError where they are sharded."""
        if any_sharded(weights):
            raise ConfigError(f"{self.label} moves whole weights, and these are sharded; use DistributedDataParallel")
        return weights

    def _divisor(self, norms: Tensor) -> Tensor:
        """Norms of gradients to divide by, 1 where there is no gradient, and so no move. Raises NonFiniteError."""
        label = self.label
        require(norms.sum().isfinite(), lambda: _not_finite(label))
        return norms.where(norms > 0, 1.0)


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together, ()."""
    return torch.linalg.vector_norm(torch.stack(foreach.norm(tensors)))


def _not_finite(label: str) -> NonFiniteError:
    return NonFiniteError(f"the gradient that {label} follows is nan or infinite; check the outputs of the model")
