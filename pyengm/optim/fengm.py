"""F-ENGM: ENGM with every gradient brought to the same norm."""

import math
from typing import Any

import torch
from torch import Tensor

from pyengm.optim.base import BackwardCall, PerExampleSGD
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.pergrad import Estimator, ExampleWeights, weighted_backward


class FENGM(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i (alpha / ||g_i||) g_i; theta <- theta - lr v.

    Short gradients are made longer, unlike in ENGM; a gradient of 0 stays 0. alpha > 0 and finite: the norm of every
    example's contribution; the paper's formula has 1, and its text a constant. norms: as for ENGM.
    The other arguments are those of torch.optim.SGD; weight decay is added outside the sum.
    Raises ConfigError for alpha <= 0 or infinite. Source: Dabouei et al. 2022, Sec. 3.1 (F-ENGM).
    """

    stateful_attributes = ("norms",)
    alpha = Hyperparameter("a finite number > 0", lambda value: 0 < value < math.inf)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 1.0,
        norms: str = "auto",
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(alpha=alpha)
        self.norms = Estimator(norms)

    def _accumulate_grads(self, call: BackwardCall) -> ExampleWeights:
        return weighted_backward(
            call.losses,
            call.params,
            self._weigh,
            self.norms,
            inputs=call.tracked,
            scaler=call.scaler,
            accumulate=call.accumulate,
        )

    def _weigh(self, norms: Tensor, _: Tensor | None) -> Tensor:
        shortest = self.alpha / torch.finfo(norms.dtype).max  # its weight is the largest number there is
        return torch.where(norms > shortest, self.alpha / norms, 0.0)
