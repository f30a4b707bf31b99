"""SNGM: stochastic normalised gradient descent with momentum."""

from typing import Any

import torch

from pyengm.optim.hyperparameter import Hyperparameter
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.registry import register_optimizer
from pyengm.optim.total_norm import TotalNormSGD
from pyengm.utils import foreach


@register_optimizer
class SNGM(TotalNormSGD):
    """v <- momentum v + g / ||g|| with g = sum_i g_i; theta <- theta - lr v.

    The norm is over all parameters of all groups jointly; a gradient of 0 stays 0. Before torch's update .grad is
    replaced by the normalised gradient.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        decay_inside: False adds weight decay to the normalised gradient, as SGD does; True makes it part of g, as the
            gradient of the L2-regularised loss, which is (1/n) sum_i g_i + weight_decay theta.
        sgd_options: The other arguments of torch.optim.SGD.

    References:
        Zhao et al. 2020, "Stochastic Normalized Gradient Descent with Momentum for Large Batch Training"; Dabouei et
        al. 2022, Eq. 4.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 3
        >>> losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> opt = pyengm.SNGM(model.parameters(), lr=0.1)
        >>> stats = opt.backward(losses)
        >>> opt.step()
    """

    info = OptimizerInfo(
        name="sngm", title="momentum SGD with the batch's gradient normalised", reference="Zhao et al. 2020"
    )

    decay_inside = Hyperparameter("True or False", lambda value: isinstance(value, bool))

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        *,
        decay_inside: bool = False,
        **sgd_options: Any,
    ):
        super().__init__(params, lr, momentum, weight_decay, **sgd_options)
        self._define(decay_inside=decay_inside)

    def _transform_grads(self) -> None:
        if self.decay_inside:
            for group in self.param_groups:
                trained = [p for p in group["params"] if p.grad is not None]
                if trained and group["weight_decay"]:
                    decay = -group["weight_decay"] if group["maximize"] else group["weight_decay"]
                    foreach.add_([p.grad for p in trained], trained, alpha=decay)
        norm = self._measure()
        foreach.mul_(self._gradients(), torch.where(norm > 0, 1 / norm, norm))

    def _torch_step(self) -> None:
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            if self.decay_inside:  # it is in .grad already
                for group in self.param_groups:
                    group["weight_decay"] = 0
            super()._torch_step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
