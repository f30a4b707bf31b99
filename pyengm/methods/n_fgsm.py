"""N-FGSM: FGSM from strong noise, without a projection to the ball (de Jorge et al. 2022)."""

from torch import Tensor, nn

from pyengm.attacks import PGD, ThreatModel
from pyengm.data import Transform
from pyengm.methods.attack_step import CYCLIC, check_numbers
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class NFGSM(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' = clip(z + step sign g), z = clip(x + U(-noise eps, noise eps)), clips to [0, 1].

    g is the gradient of the cross-entropy at z. x' is not projected to the ball of radius eps: it is up to noise eps +
    step_size away. In L2 the noise is uniform in the ball of radius noise eps, and the step goes along g over its norm.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        noise: Size of the noise, in multiples of eps.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        de Jorge et al. 2022, "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", Alg. 1; the
        recipe from the authors' code.
    """

    info = MethodInfo(
        name="n_fgsm",
        title="FGSM from strong noise, not projected",
        reference="de Jorge et al. 2022",
        passes=PassCounts(1, 1, 1, per_step=True, steps=1),
        recipe=CYCLIC,
        is_pgd=True,
    )

    def __init__(
        self, eps: float, step_size: float | None = None, *, noise: float = 2.0, norm: str = "linf", bn: str = "train"
    ):
        self.threat = ThreatModel(norm, eps)
        step_size = eps if step_size is None else step_size
        check_numbers(step_size=step_size, noise=noise)
        reach = noise * eps + step_size
        self.attack = PGD(reach if norm == "l2" else min(reach, 1.0), step_size, 1, norm=norm, bn=bn)
        self.noise = noise

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        start = x.detach() + self.noise * self.threat.uniform(x, key)
        return self.attack(model, x, y, start=start.clamp_(0, 1))
