"""ENGM: example-normalised gradient descent with momentum."""

import math
from typing import Any

from torch import Tensor

from pyengm.errors import ConfigError, NonFiniteError
from pyengm.ops import clip_weights
from pyengm.optim.base import ExampleSGD, ExampleWeights
from pyengm.pergrad import per_example_grad_norms


class ENGM(ExampleSGD):
    """v <- momentum v + (1/n) sum_i min(alpha / ||g_i||, 1) g_i; theta <- theta - lr v.

    The gradient of every example is clipped to norm alpha before the average; the norm is over all parameters of all
    groups jointly. alpha > 0: 5 for ResNet-18 on CIFAR-10, growing with the square root of the number of parameters;
    infinity gives momentum SGD exactly, at its price. It may be changed at any time: `opt.alpha = 3.0`.
    The other arguments are those of torch.optim.SGD; weight decay is added outside the clipped sum.
    Raises ConfigError for alpha <= 0. Source: Dabouei et al. 2022, Eq. 5.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        alpha: float = 5.0,
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay=weight_decay, **sgd_options)
        if any("alpha" in group for group in self.param_groups):
            raise ConfigError("alpha is one number for all parameter groups: give it to ENGM, not to a group")
        self.alpha = alpha

    @property
    def alpha(self) -> float:
        """The longest gradient an example may contribute; kept in the parameter groups, so state_dict has it."""
        return self.param_groups[0]["alpha"]

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not value > 0:
            raise ConfigError(f"alpha is {value}; expected a number > 0 (infinity switches the clipping off)")
        self.defaults["alpha"] = value
        for group in self.param_groups:
            group["alpha"] = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # the state of another SGD has no alpha: keep one's own
            group.setdefault("alpha", self.defaults["alpha"])

    def _weigh(self, losses: Tensor) -> ExampleWeights | None:
        if math.isinf(self.alpha):
            return None
        norms = per_example_grad_norms(losses, self._parameters())
        if not norms.isfinite().all():
            bad = (~norms.isfinite()).nonzero().flatten().tolist()
            raise NonFiniteError(f"the gradient norms of examples {bad} of the batch are nan or infinite")
        return ExampleWeights(norms, clip_weights(norms, self.alpha))
