"""Entropy-SGD of second order: its step divided by a curvature estimated in the inner loop."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from pyengm.optim.entropy_sgd import EntropySGD
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.registry import register_optimizer
from pyengm.optim.sgld import SGLD
from pyengm.utils import foreach


@register_optimizer
class EntropySGD2(EntropySGD):
    """EntropySGD with G = (theta - mu) / (1 - gamma s^2), element by element; s^2 is the variance of x' in the loop.

    That is a Newton step, as the Hessian of the local entropy is gamma I - gamma^2 Cov(x'), here with its diagonal.
    s^2 is averaged like mu and never below 0.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        floor: Smallest divisor, > 0 and at most 1.
        options: The other arguments of EntropySGD.

    References:
        Kanai et al. 2021, App. D, Eq. 77.
    """

    info = replace(EntropySGD.info, name="entropy_sgd2", title="local entropy of the loss, second order")

    powers: ClassVar[int] = 2
    floor = Hyperparameter("a number > 0 and at most 1", lambda value: 0 < value <= 1)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        floor: float = 0.1,
        **options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **options)
        self._define(floor=floor)

    def _outer_gradient(self, loop: SGLD) -> list[Tensor]:
        mean, square = loop.averages
        variance = foreach.sub(square, foreach.mul(mean, mean))
        foreach.clamp_min_(variance, 0.0)
        divisor = foreach.mul(variance, -loop.gamma)
        foreach.add_(divisor, 1.0)
        foreach.clamp_min_(divisor, self.floor)
        return list(foreach.div(super()._outer_gradient(loop), divisor))
