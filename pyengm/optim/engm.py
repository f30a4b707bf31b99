"""ENGM: example-normalised gradient descent with momentum."""

import math
from typing import Any

from torch import Tensor

from pyengm.ops import clip_weights
from pyengm.optim.base import BackwardCall, PerExampleSGD, require_norms
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.pergrad import NormEstimator, PerExampleStats, backward_by_weights


@register_optimizer
class ENGM(PerExampleSGD):
    """v <- momentum v + (1/n) sum_i min(alpha / ||g_i||, 1) g_i; theta <- theta - lr v.

    The gradient of every example is clipped to norm alpha before the average; the norm is over all parameters of all
    groups jointly.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, added outside the clipped sum.
        alpha: Largest norm of an example's gradient, > 0: 5 for ResNet-18 on CIFAR-10, growing with the square root of
            the number of parameters (`scale_alpha`); infinity gives momentum SGD exactly, at its price. It may be
            changed at any time: `opt.alpha = 3`.
        norms: How gradient norms are found, see `pyengm.per_example_grad_norms`; what is fitted to the model under
            batch norm in training mode is part of state_dict.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: alpha <= 0.

    References:
        Dabouei et al. 2022, Eq. 5.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.ENGM(model.parameters(), lr=0.1, alpha=1.0)
        >>> stats = opt.backward(losses)
        >>> opt.step()
        >>> sorted(opt.statistics())[:2]
        ['clipped', 'norm_mean']
    """

    info = OptimizerInfo(
        name="engm",
        title="every example's gradient clipped to norm alpha",
        reference="Dabouei et al. 2022",
        weighs_examples=True,
    )

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
        self.norms = NormEstimator(norms)

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats | None:
        if math.isinf(self.alpha):
            return super()._accumulate_grads(call)
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
        return clip_weights(require_norms(norms), self.alpha)
