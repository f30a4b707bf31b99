"""MGNC: momentum SGD with the norm of the batch's gradient clipped."""

from typing import Any

import torch

from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.optim.total_norm import TotalNormSGD


@register_optimizer
class MGNC(TotalNormSGD):
    """v <- momentum v + min(1, max_norm / ||g||) g with g = (1/n) sum_i g_i; theta <- theta - lr v.

    The norm is over all parameters of all groups jointly.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, added after the clipping.
        max_norm: Largest norm of the batch's gradient, > 0; infinity never clips.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: max_norm <= 0.

    References:
        Dabouei et al. 2022, Sec. 3.1 (MSGD+GNC).
    """

    info = OptimizerInfo(
        name="mgnc", title="momentum SGD with the batch's gradient clipped", reference="Dabouei et al. 2022"
    )

    max_norm = Hyperparameter("a number > 0 (infinity switches the clipping off)", lambda value: value > 0)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        max_norm: float = 25.0,
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(max_norm=max_norm)

    def _transform_grads(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(params, self.max_norm, self._measure())
