"""A-ENGM: ENGM with norms predicted from input gradients, and measured once in a while."""

import math
from typing import Any

from torch import Tensor

from pyengm.ops import clip_weights
from pyengm.optim.base import BackwardCall
from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.input_gradient import InputGradientSGD
from pyengm.optim.registry import register_optimizer
from pyengm.optim.regression import Regression
from pyengm.pergrad import NormEstimator, PerExampleStats


@register_optimizer
class AENGM(InputGradientSGD):
    """v <- momentum v + (1/n) sum_i min(alpha / (gamma1 ||dL_i/dx_i|| + gamma0), 1) g_i; theta <- theta - lr v.

    Every tau-th call of backward, the first included, gradient norms are computed beside the input gradients, and the
    line (gamma0, gamma1), initially (0, 1), becomes gamma_momentum times itself plus the rest of the least squares fit.
    Between these calls no norms are computed. `backward(losses, inputs=x_adv)` takes the input gradients from the
    backward pass of the losses; `backward(losses, input_gradient=g)` computes none.
    Where torch.distributed runs, all processes must call backward equally often, and share every fit.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, added outside the weighted sum.
        alpha: Largest norm of an example's gradient, as for ENGM.
        tau: Calls between two fits, >= 1.
        gamma_momentum: Share of the old line, from 0 to 1.
        use_exact_on_refresh: Whether the calls that fit take their weights from the norms that they have computed; with
            tau = 1 that is ENGM.
        norms: How gradient norms are found, see `pyengm.per_example_grad_norms`; "exact" takes one backward pass per
            example.
        sgd_options: The other arguments of torch.optim.SGD.

    Raises:
        ConfigError: A hyperparameter is out of range.

    References:
        Dabouei et al. 2022, Sec. 2.5 and Alg. 1, with min in place of the max in Eq. 7, and the norm around the input
        gradient alone, as in Eq. 6.
    """

    info = OptimizerInfo(
        name="aengm",
        title="NENGM, with norms fitted to input gradients every tau steps",
        reference="Dabouei et al. 2022",
        weighs_examples=True,
        needs_inputs=True,
    )

    stateful_attributes = ("norms", "regression")
    alpha = Hyperparameter("a number > 0 (infinity switches the weights off)", lambda value: value > 0)
    tau = Hyperparameter("a whole number >= 1", lambda value: value >= 1 and value == int(value))
    gamma_momentum = Hyperparameter("a number from 0 to 1", lambda value: 0 <= value <= 1)
    use_exact_on_refresh = Hyperparameter("True or False", lambda value: isinstance(value, bool))

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 5.0,
        tau: int = 50,
        gamma_momentum: float = 0.7,
        use_exact_on_refresh: bool = False,
        norms: str = "auto",
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(alpha=alpha, tau=tau, gamma_momentum=gamma_momentum, use_exact_on_refresh=use_exact_on_refresh)
        self.norms = NormEstimator(norms)
        self.regression = Regression()

    @property
    def gamma0(self) -> float:
        """The intercept of the line."""
        return self.regression.gammas[0].item()

    @property
    def gamma1(self) -> float:
        """The slope of the line."""
        return self.regression.gammas[1].item()

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats | None:
        if math.isinf(self.alpha):
            return super()._accumulate_grads(call)
        refresh = self.regression.calls % self.tau == 0
        used = self._weighted(call, self._weigh, self.norms if refresh else None)
        self.regression.calls += 1
        return used

    def _weigh(self, norms: Tensor | None, input_norms: Tensor) -> Tensor:
        weights = self.regression.weights(input_norms, norms, self.alpha, self.gamma_momentum)
        return weights if norms is None or not self.use_exact_on_refresh else clip_weights(norms, self.alpha)
