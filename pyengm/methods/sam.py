"""SAM: sharpness-aware minimization (Foret et al. 2021) of the losses of a method with an attack."""

import math
from dataclasses import replace

from torch import Tensor, nn

from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod
from pyengm.methods.moved_weights import MovedWeights, joint_norm


class SAM(MovedWeights):
    """The losses L_i of `base` at the weights w + v, v = rho g / ||g||, g the gradient of (1/n) sum_i L_i at w.

    The norm is over all trained parameters together, and all move. The gradients at w + v are then the optimiser's, and
    its step is taken at w, weight decay included. AWP differs in three ways: its v has the norm gamma ||w|| for each
    weight tensor by itself, leaves biases and batch norm as they are, and the step is taken at w + v.

    With an optimiser that clips each example, such as ENGM, the gradients and norms of the examples are those at w + v;
    v follows the mean gradient as it is, without clipping. The attack runs at w, once.

    Args:
        base: A method that is an attack and then losses, such as PGDAT or TRADES.
        rho: The norm of v, >= 0.

    Raises:
        ConfigError: rho is out of range, the base has no attack or moves weights itself, or the weights are sharded.
        NonFiniteError: g is not finite.

    References:
        Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization", Eq. 2 for p = 2, and
        Alg. 1.
    """

    label = "SAM"
    undo_before_step = True

    def __init__(self, base: AttackMethod, rho: float):
        if not (math.isfinite(rho) and rho >= 0):
            raise ConfigError(f"rho is {rho}; expected a finite number >= 0, such as 0.05")
        super().__init__(base)
        self.rho, passes = rho, base.info.passes
        more = {name: getattr(passes, name) + 1 for name in ("forward", "input_grad", "weight_grad")}
        self.info = replace(base.info, passes=replace(passes, **more))

    def _moves(self) -> bool:
        return self.rho > 0

    def _ascent(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        weights: list[Tensor] = self._whole([p for p in model.parameters() if p.requires_grad])
        grads = self._gradient(model, weights, x, x_adv, y)
        scale = self.rho / self._divisor(joint_norm(grads))
        return weights, [g * scale for g in grads]
