"""N-ENGM: ENGM with input gradients in place of gradients."""

import math
from typing import Any

from pyengm.ops import clip_weights
from pyengm.optim.base import BackwardCall
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.input_gradient import InputGradientSGD
from pyengm.optim.registry import register_optimizer
from pyengm.pergrad import PerExampleStats


@register_optimizer
class NENGM(InputGradientSGD):
    """v <- momentum v + (1/n) sum_i min(alpha / ||dL_i/dx_i||, 1) g_i; theta <- theta - lr v.

    `backward(losses, inputs=x_adv)` takes the input gradients from the backward pass of the losses;
    `backward(losses, input_gradient=g)` computes none. No gradient norms are computed in either.
    Under batch norm in training mode dL_i/dx_i contains the terms of the other examples' losses too.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, added outside the weighted sum.
        alpha: Norm of the input gradient above which an example is weighted down, > 0: 0.5 for ResNet-18 on CIFAR-10;
            infinity gives momentum SGD exactly, at its price.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: alpha <= 0.

    References:
        Dabouei et al. 2022, Sec. 2.5, with min in place of the max in Eq. 7.

    Example:
        >>> model, y = torch.nn.Linear(4, 3), torch.arange(8) % 3
        >>> x = torch.rand(8, 4, requires_grad=True)
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.NENGM(model.parameters(), lr=0.1)
        >>> stats = opt.backward(losses, inputs=x)
        >>> opt.step()
    """

    info = OptimizerInfo(
        name="nengm",
        title="ENGM with weights from input gradients",
        reference="Dabouei et al. 2022",
        weighs_examples=True,
        needs_inputs=True,
    )

    alpha = Hyperparameter("a number > 0 (infinity switches the weights off)", lambda value: value > 0)

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 0.5,
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(alpha=alpha)

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats | None:
        if math.isinf(self.alpha):
            return super()._accumulate_grads(call)
        return self._weighted(call, lambda _, input_norms: clip_weights(input_norms, self.alpha), None)
