"""MultiGrad: FGSM steps where gradients at several points agree in sign (Golgooni et al. 2021)."""

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.threat_model import unit
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import CYCLIC, check_bn, check_numbers, checked, loss_gradient
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class MultiGrad(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' one step from x along the entries in which gradients at several points agree in sign.

    The points are uniform in the ball. Entries in which fewer than all of the gradients of the cross-entropy have the
    same sign are set to 0. In L2, for which the authors have no rule, the step goes along the mean of the gradients
    over their norms, without these entries.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 2 eps unless given, which the projection to the ball makes eps.
        samples: Number of points.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Golgooni et al. 2021, as for `ZeroGrad`; the authors' code also runs the points one after another, and has an
        option to run them as one batch.
    """

    info = MethodInfo(
        name="multi_grad",
        title="FGSM where three gradients agree",
        reference="Golgooni et al. 2021",
        passes=PassCounts(4, 4, 1),
        recipe=CYCLIC,
    )

    def __init__(
        self, eps: float, step_size: float | None = None, *, samples: int = 3, norm: str = "linf", bn: str = "train"
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = 2 * eps if step_size is None else step_size
        check_numbers(step_size=self.step_size)
        check_bn(bn)
        if samples < 1:
            raise ConfigError(f"samples is {samples}; expected a number of gradients, 1 or more")
        self.samples, self.bn = samples, bn

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = checked(x, y, key)
        signs, total = torch.zeros_like(x), torch.zeros_like(x)
        for draw in range(self.samples):
            point = torch.add(x, self.threat.uniform(x, key, draw=draw), out=empty_dense(x))
            grad, _, _ = loss_gradient(model, self.threat.project_(point, x), y, self.bn)
            signs += grad.sign()
            total += grad.sign() if self.threat.norm == "linf" else unit(grad)
        agreed = total.masked_fill_(signs.abs() < self.samples, 0)
        return self.threat.step_(empty_dense(x).copy_(x), agreed, x, self.step_size)
