"""GAT: guided adversarial training, with a relaxation by the distance of probabilities (Sriramanan et al. 2020)."""

import math

from torch import Tensor

from pyengm.attacks import ThreatModel
from pyengm.attacks.losses import log_softmax
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_numbers
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.methods.relaxed_attack import RelaxedAttack


@register_method
class GAT(RelaxedAttack):
    """L_i = CE(f(x_i), y_i) + lambda |p(x_i) - p(x'_i)|^2, p the probabilities of the classes.

    x' starts at a random corner of the ball of radius eps / 2 and takes steps up the same losses, with p(x) constant.
    steps = 1: the second part enters the attack in every other batch of an epoch, from the second one on, and p(x) in
    it uses the batch's statistics, whatever the mode of the attack.
    lambda is l2_weight, and in the epochs from late_from on `factor` times as large; the epoch is that of
    `start_epoch`, or else of the key.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        steps: Steps of the attack; with more than one the second part enters every other one, from the first one on.
        epochs: Length of the run in epochs.
        norm: Norm of the threat model, "linf" or "l2" (where the corner, too, has an L2 norm of eps / 2).
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".
        l2_weight: lambda in the early epochs.
        factor: Factor of lambda in the late epochs.
        late_from: First late epoch, counted from 0; unless given 86 % of the run, as the authors' 86 of 100.
        as_published: As in the authors' code, the clean images update the running statistics of batch norm once more
            before every attack.

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Logits or gradients are not finite.

    References:
        Sriramanan et al. 2020, "Guided Adversarial Attack for Evaluating and Enhancing Adversarial Defenses", Sec. 4;
        all numbers from the authors' code.
    """

    info = MethodInfo(
        name="gat",
        title="a guided attack, probabilities held together",
        reference="Sriramanan et al. 2020",
        passes=PassCounts(3.5, 3, 2),  # three forward passes and four in turn
        recipe={"batch_size": 64, "epochs": 100, "milestones": (71, 86)},
        epoch_options={"late_from": 0},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 1,
        *,
        epochs: int,
        norm: str = "linf",
        bn: str = "eval",
        l2_weight: float = 10.0,
        factor: float = 4.0,
        late_from: int | None = None,
        as_published: bool = False,
    ):
        super().__init__(ThreatModel(norm, eps), step_size, steps, bn=bn, as_published=as_published)
        check_numbers(l2_weight=l2_weight, factor=factor)
        self.late_from = math.ceil(epochs * 86 / 100) if late_from is None else late_from
        if epochs < 1 or self.late_from < 0:
            raise ConfigError(f"epochs and late_from are {epochs} and {late_from}; expected at least 1 and 0 epochs")
        self.l2_weight, self.factor = l2_weight, factor

    @property
    def weight(self) -> float:
        """lambda in the current epoch."""
        return self.l2_weight * (self.factor if self.epoch >= self.late_from else 1.0)

    def relaxation(self, natural: Tensor, logits: Tensor) -> Tensor:
        """lambda |p(x_i) - p(x'_i)|^2, (n,)."""
        return self.weight * (log_softmax(natural).exp() - log_softmax(logits).exp()).square().sum(dim=1)
