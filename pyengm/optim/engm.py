"""ENGM: example-normalised gradient descent with momentum."""

import math
from typing import Any

from pyengm.ops import clip_weights
from pyengm.optim.base import BackwardCall, PerExampleSGD
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.pergrad import Estimator, ExampleWeights, weighted_backward


class ENGM(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i min(alpha / ||g_i||, 1) g_i; theta <- theta - lr v.

    The gradient of every example is clipped to norm alpha before the average; the norm is over all parameters of all
    groups jointly. alpha > 0: 5 for ResNet-18 on CIFAR-10, growing with the square root of the number of parameters
    (`scale_alpha`); infinity gives momentum SGD exactly, at its price. It may be changed at any time: `opt.alpha = 3`.
    norms: how gradient norms are found, see `pyengm.per_example_grad_norms`; what they learn about the model under
    batch norm in training mode is part of state_dict.
    The other arguments are those of torch.optim.SGD; weight decay is added outside the clipped sum.
    Raises ConfigError for alpha <= 0. Source: Dabouei et al. 2022, Eq. 5.
    """

    stateful_attributes = ("norms",)
    alpha = Hyperparameter("a number > 0 (infinity switches the clipping off)", lambda value: value > 0)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 5.0,
        norms: str = "auto",
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(alpha=alpha)
        self.norms = Estimator(norms)

    def _accumulate_grads(self, call: BackwardCall) -> ExampleWeights | None:
        if math.isinf(self.alpha):
            return super()._accumulate_grads(call)
        return weighted_backward(
            call.losses,
            call.params,
            lambda norms, _: clip_weights(norms, self.alpha),
            self.norms,
            inputs=call.tracked,
            scaler=call.scaler,
            accumulate=call.accumulate,
        )
