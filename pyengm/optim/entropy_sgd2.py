"""Entropy-SGD of second order: its step divided by the curvature that the inner loop has seen."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengm.optim.entropy_sgd import EntropySGD
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.sgld import SGLD


class EntropySGD2(EntropySGD):
    """EntropySGD with G = (theta - mu) / (1 - gamma s^2), element by element; s^2 is the variance of x' on its walk.

    That is a Newton step, as the Hessian of the local entropy is gamma I - gamma^2 Cov(x'), here with its diagonal.
    s^2 is averaged like mu and never below 0; floor: the smallest divisor, > 0 and at most 1.
    The other arguments are those of EntropySGD. Source: Kanai et al. 2021, App. D, Eq. 77.
    """

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
        variance = torch._foreach_sub(square, torch._foreach_mul(mean, mean))
        torch._foreach_clamp_min_(variance, 0.0)
        divisor = torch._foreach_mul(variance, -loop.gamma)
        torch._foreach_add_(divisor, 1.0)
        torch._foreach_clamp_min_(divisor, self.floor)
        return torch._foreach_div(super()._outer_gradient(loop), divisor)
