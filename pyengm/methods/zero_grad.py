"""ZeroGrad: FGSM steps without the pixels whose gradients are small (Golgooni et al. 2021)."""

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.memory_format import empty_dense
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import CYCLIC, check_bn, check_numbers, checked, loss_gradient
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class ZeroGrad(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' one step along the large entries of the gradient from a uniform point of the ball.

    Entries of the cross-entropy's gradient whose size is below its `quantile` within the image are set to 0. In L2 the
    step goes along what is left over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 2 eps unless given.
        quantile: The share of an image's entries that are set to 0; the authors' 0.35 for CIFAR-10, 0.45 for CIFAR-100
            and 0.7 for SVHN.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Golgooni et al. 2021, "ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM Adversarial
        Training"; all numbers from the authors' code.
    """

    info = MethodInfo(
        name="zero_grad",
        title="FGSM without small gradients",
        reference="Golgooni et al. 2021",
        passes=PassCounts(2, 2, 1),
        recipe=CYCLIC,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        quantile: float = 0.35,
        norm: str = "linf",
        bn: str = "train",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = 2 * eps if step_size is None else step_size
        check_numbers(step_size=self.step_size)
        check_bn(bn)
        if not 0 <= quantile <= 1:
            raise ConfigError(f"quantile is {quantile}; expected a share of the pixels from 0 to 1")
        self.quantile, self.bn = quantile, bn

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = checked(x, y, key)
        x_adv = self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=empty_dense(x)), x)
        grad, _, _ = loss_gradient(model, x_adv, y, self.bn)
        return self.threat.step_(x_adv, without_small(grad, self.quantile), x, self.step_size)


def without_small(grad: Tensor, quantile: float) -> Tensor:
    """grad (n, ...) with 0 where its size is below that quantile of the sizes in its row, interpolated linearly."""
    sizes = grad.abs().flatten(1)
    place = quantile * (sizes.shape[1] - 1)
    below, above = int(place), min(int(place) + 1, sizes.shape[1] - 1)
    # Two order statistics are cheaper than torch.quantile, which sorts, and have no limit of elements.
    low, high = (sizes.kthvalue(k + 1, dim=1).values for k in (below, above))
    bound = torch.lerp(low, high, place - below)
    return grad.masked_fill(grad.abs() < bound.view(-1, *[1] * (grad.dim() - 1)), 0)
