"""NuAT: nuclear-norm adversarial training (Sriramanan et al. 2021)."""

import math

import torch
from torch import Tensor

from pyengm.attacks import ThreatModel
from pyengm.attacks.validation import check_finite
from pyengm.errors import ConfigError
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.methods.relaxed_attack import RelaxedAttack


@register_method
class NuAT(RelaxedAttack):
    """L_i = CE(f(x_i), y_i) + lambda (n / divisor) <(U V^T)_i, D_i>, D = f(X) - f(X') = U S V^T, U and V constant.

    The mean of the second term is lambda ||D||_* / divisor, with the nuclear norm of the (n, k) matrix of logit
    differences, and so is its gradient: the examples of a batch are not independent. x' starts at a random corner of
    the ball of radius eps / 2 and takes steps up the same losses, with f(X) constant.
    steps = 1 (NuAT): the nuclear norm enters the attack in every other batch of an epoch, from the second one on, and
    f(X) in it uses the batch's statistics, whatever the mode of the attack. steps > 1 (NuAT2): it enters every other
    step, from the first one on, and f(X) is in the mode of the attack.
    lambda rises with the epochs in equal parts from 0 to max_lambda, which it reaches at epoch E - 10 of E (NuAT2: not
    before the end); the epoch is that of `start_epoch`, or else of the key.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        steps: Steps of the attack.
        epochs: E, the length of the run in epochs.
        norm: Norm of the threat model, "linf" or "l2" (where the corner, too, has an L2 norm of eps / 2).
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".
        max_lambda: Last lambda; 4.5 in the authors' code, and 4 for NuAT2.
        divisor: Divisor of the nuclear norm of any batch: 64, the authors' batch size, also for their short last batch,
            or None for each batch's own n.
        as_published: As in the authors' code of NuAT, the clean images update the running statistics of batch norm
            once more before every attack.

    Raises:
        ConfigError: A value or name is out of range.
        NonFiniteError: Logits or gradients are not finite.

    References:
        Sriramanan et al. 2021, "Towards Efficient and Effective Adversarial Training", Sec. 4; the schedule and the
        mode of f(X) from the authors' code.
    """

    info = MethodInfo(
        name="nuat",
        title="nuclear-norm regularisation",
        reference="Sriramanan et al. 2021",
        passes=PassCounts(3.5, 3, 2),  # three forward passes and four in turn
        recipe={"batch_size": 64, "schedule": "nuat", "epochs": 100},
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
        max_lambda: float = 4.5,
        divisor: int | None = 64,
        as_published: bool = False,
    ):
        super().__init__(ThreatModel(norm, eps), step_size, steps, bn=bn, as_published=as_published)
        if epochs < 1 or not (math.isfinite(max_lambda) and max_lambda >= 0):
            raise ConfigError(
                f"epochs and max_lambda are {epochs} and {max_lambda}; expected 1 or more, and a number >= 0"
            )
        if divisor is not None and divisor < 1:
            raise ConfigError(f"divisor is {divisor}; expected a batch size, or None for that of each batch")
        self.divisor, self.max_lambda = divisor, max_lambda
        self.ramp = max(epochs - 10, 1) if steps == 1 else epochs

    @property
    def weight(self) -> float:
        """lambda in the current epoch."""
        return self.max_lambda * min(self.epoch / self.ramp, 1)

    def relaxation(self, natural: Tensor, logits: Tensor) -> Tensor:
        """lambda (n / divisor) <(U V^T)_i, D_i>, (n,)."""
        difference, n = natural - logits, len(natural)
        return self.weight * n / (self.divisor or n) * (polar_factor(difference.detach()) * difference).sum(dim=1)


def polar_factor(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T over positive singular values: the gradient of sum(S).

    Args:
        matrix: (n, k).

    Returns:
        (n, k) in float32, or float64 for a matrix of that type.

    Raises:
        NonFiniteError: The matrix is not finite.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    check_finite(wide)
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    # Directions of rounding errors alone are arbitrary.
    rank = s > s[0] * max(wide.shape) * torch.finfo(wide.dtype).eps
    return (u * rank) @ vh
