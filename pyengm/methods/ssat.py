"""Stable single-step adversarial training, SSAT (Kim et al. 2021)."""

from functools import partial

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class SSAT(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' the first misclassified point on the way to the example of FGSM with a random start.

    With delta_i the perturbation that FGSM finds, x'_i = x_i + (k / c) delta_i for the smallest k = 1, ..., c - 1 that
    is misclassified, and k = c where none is. Where the random start is already misclassified, x'_i = x_i: the authors'
    code takes the logits of the start, which are at hand, not those of the image.

    On a GPU the host waits for the device at every check of a point, to learn which examples are left.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; 1.25 eps unless given.
        checkpoints: c; 1 is FGSM on the images that are classified right.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack and of the checks: "eval" as in the authors' code, "train" or "batch_stats";
            in the latter two, where the examples are not independent, all of them take part in every check.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Kim et al. 2021.
    """

    info = MethodInfo(
        name="ssat",
        title="the smallest step that fools",
        reference="Kim et al. 2021",
        passes=PassCounts(4, 2, 1, remark="at most {}"),  # reached where every image is classified right
        recipe={"lr": 0.01, "epochs": 200, "milestones": (60, 120, 160)},
        needs_class="it looks where an image is first classified wrong",
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        checkpoints: int = 3,
        norm: str = "linf",
        bn: str = "eval",
    ):
        if checkpoints < 1:
            raise ConfigError(f"checkpoints is {checkpoints}; expected at least 1")
        self.attack = PGD(eps, 1.25 * eps if step_size is None else step_size, 1, norm=norm, bn=bn)
        self.threat, self.checkpoints = self.attack.threat, checkpoints

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = check_batch(x, y)
        check_extras(x, None, key, None)
        x = x.detach()
        x_adv = self.threat.project_(torch.add(x, self.threat.uniform(x, key), out=empty_dense(x)), x)
        with attack_mode(model, self.attack.bn), torch.no_grad():
            grad, losses, logits = input_grad(CheckedModel(model, y), x_adv, partial(cross_entropy, y=y))
            check_finite(losses, grad)
            self.threat.step_(x_adv, grad, x, self.attack.step_size)
            return self._shorten(model, x, x_adv, y, logits.argmax(dim=1) == y)

    def _shorten(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, right: Tensor) -> Tensor:
        """The points to train on; right: (n,) bool, whether the start of an example was classified right."""
        delta = x_adv - x
        out = torch.where(right.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
        right = right.clone()
        for k in range(1, self.checkpoints):
            rows = right.nonzero().flatten()  # the one time in a step that the host waits
            if len(rows) == 0:
                break
            if self.attack.bn != "eval":
                rows = torch.arange(len(y), device=y.device)
            point = x[rows] + delta[rows] * (k / self.checkpoints)
            fooled = (logits_of(model, point).argmax(dim=1) != y[rows]) & right[rows]
            out[rows] = torch.where(fooled.view(-1, *[1] * (x.dim() - 1)), point, out[rows])
            right[rows] &= ~fooled
        return out
