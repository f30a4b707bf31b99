"""F-ENGM: ENGM with every gradient rescaled to the same norm."""

import math
from typing import Any

import torch
from torch import Tensor

from pyengm.optim.base import BackwardCall, PerExampleSGD, require_norms
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.pergrad import NormEstimator, PerExampleStats, backward_by_weights


@register_optimizer
class FENGM(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i (alpha / ||g_i||) g_i; theta <- theta - lr v.

    Gradients of small norm are enlarged, unlike in ENGM; a gradient of 0 stays 0.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, added outside the sum.
        alpha: Norm of every example's contribution, > 0 and finite; the paper's formula has 1, and its text a constant.
        norms: How gradient norms are found, as for ENGM.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: alpha is <= 0 or infinite.

    References:
        Dabouei et al. 2022, Sec. 3.1 (F-ENGM).

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.FENGM(model.parameters(), lr=0.1, alpha=1.0)
        >>> stats = opt.backward(losses)
        >>> opt.step()
    """

    info = OptimizerInfo(
        name="fengm",
        title="every example's gradient rescaled to norm alpha",
        reference="Dabouei et al. 2022",
        weighs_examples=True,
    )

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
        self.norms = NormEstimator(norms)

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats:
        return backward_by_weights(
            call.losses,
            call.params,
            self._weigh,
            self.norms,
            inputs=call.tracked,
            scaler=call.scaler,
            accumulate=call.accumulate,
        )

    def _weigh(self, norms: Tensor | None, input_norms: Tensor | None) -> Tensor:
        norms = require_norms(norms)
        smallest = self.alpha / torch.finfo(norms.dtype).max  # its weight is the largest finite number
        return torch.where(norms > smallest, self.alpha / norms, 0.0)
