"""ELLE: FGSM with a penalty on the curvature of the loss between random points (Abad Rocamora et al. 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import CYCLIC, check_bn, check_numbers, checked, loss_gradient
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key, Purpose, philox_uniform
from pyengm.utils.distributed import all_reduce_sum


@register_method
class ELLE(SinglePassMethod):
    """L_i = CE(f(x'_i), y_i) + lambda e_i, e_i = (l(c_i) - (1 - t_i) l(a_i) - t_i l(b_i))^2, l the cross-entropy.

    a and b are uniform in the ball around x, not clipped to [0, 1], t is uniform in [0, 1), and c = (1 - t) a + t b.
    x' = clip(x + step sign g), g the gradient at x, clipped to the ball and to [0, 1]; the authors' code clips to
    neither. The three points of all images make one batch of 3 n images. In L2 the step goes along g over its norm.
    adaptive (ELLE-A): lambda is 0 at first. After every batch it becomes weight where the mean of e over the batch is
    above mean + sensitivity std of that of all batches before, of which there are more than two, and else decay lambda.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        weight: lambda, or its largest value with `adaptive`; None takes the authors' value for CIFAR-10: 1000 for eps
            up to 8/255, 5000 up to 20/255 and 10000 above, and with `adaptive` 4000.
        adaptive: Whether lambda follows the curvature.
        decay: Factor of lambda after a batch of usual curvature.
        sensitivity: Standard deviations above the mean that are unusual.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Abad Rocamora et al. 2024, "Efficient Local Linearity Regularization to Overcome Catastrophic Overfitting"; all
        numbers from the authors' code.
    """

    info = MethodInfo(
        name="elle",
        title="FGSM with a linear loss, `adaptive` weight",
        reference="Abad Rocamora et al. 2024",
        passes=PassCounts(5, 5, 4),
        recipe=CYCLIC,
        short_recipe=lambda run: {"method_options": ("weight=10",)},  # larger ones leave the outputs constant
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        weight: float | None = None,
        adaptive: bool = False,
        decay: float = 0.99,
        sensitivity: float = 2.0,
        norm: str = "linf",
        bn: str = "train",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        self.weight = published_weight(eps, adaptive) if weight is None else weight
        check_numbers(step_size=self.step_size, weight=self.weight, sensitivity=sensitivity)
        check_bn(bn)
        if not 0 <= decay <= 1:
            raise ConfigError(f"decay is {decay}; expected a factor from 0 to 1")
        self.adaptive, self.decay, self.sensitivity, self.bn = adaptive, decay, sensitivity, bn
        # lambda, and of the curvature of all batches so far: their number, the mean, and the sum of squares around it
        self.tracked = torch.zeros(4, dtype=torch.float64)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        key = Key.fresh(len(x), x.device) if key is None else key
        grad, _, _ = loss_gradient(model, x, y, self.bn)
        x_adv = self.as_input(self.threat.step_(empty_dense(x).copy_(x), grad, x, self.step_size))
        logits = logits_of(model, x_adv)
        losses = self.cross_entropy(logits, y)
        curvature = self._curvature(model, x, y, key)
        weight = self._track(curvature.detach()) if self.adaptive else self.weight
        return StepOutput(losses + weight * curvature, x_adv, logits)

    def _curvature(self, model: nn.Module, x: Tensor, y: Tensor, key: Key) -> Tensor:
        """e, (n,)."""
        named = {"seed": key.seed, "epoch": key.epoch, "purpose": Purpose.MIX}
        a, b = (x + self.threat.uniform(x, key, purpose=Purpose.SECOND, draw=draw) for draw in range(2))
        t = philox_uniform(key.index, (1,) * (x.dim() - 1), **named).to(x.dtype)
        points = torch.cat([a, b, torch.lerp(a, b, t)])
        ends = cross_entropy(logits_of(model, points), torch.cat([y] * 3))
        first, second, between = ends.chunk(3)
        t = t.flatten().to(ends.dtype)
        return (between - (1 - t) * first - t * second).square()

    @torch.no_grad()
    def _track(self, curvature: Tensor) -> Tensor:
        """lambda for this batch; the one for the next follows from the curvature (n,) of this."""
        state = self.tracked = self.tracked.to(curvature.device)
        used, count, mean, squares = state.clone()
        total, n = all_reduce_sum(torch.stack([curvature.double().sum(), torch.ones_like(mean) * len(curvature)]))
        now = total / n
        unusual = (count > 2) & (now > mean + self.sensitivity * (squares / count.clamp(min=1)).sqrt())
        state[0] = torch.where(unusual, self.weight, self.decay * used)
        state[1] = count + 1
        state[2] = mean + (now - mean) / state[1]
        state[3] = squares + (now - mean) * (now - state[2])
        return used.to(curvature.dtype)

    def extra_state(self) -> dict[str, Any]:
        return {"tracked": self.tracked} if self.adaptive else {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if not self.adaptive:
            super().load_extra_state(state)
        elif state:
            self.tracked = state["tracked"].clone()


def published_weight(eps: float, adaptive: bool) -> float:
    """The authors' weight for CIFAR-10 and that radius, in pixel units."""
    if adaptive:
        return 4000.0
    return 1000.0 if eps < 9 / 255 else 5000.0 if eps < 21 / 255 else 10000.0
