"""PGD adversarial training (Madry et al. 2018)."""

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.model_state import attack_mode
from pyengm.attacks.targeted import TARGETS, wrong_labels
from pyengm.attacks.validation import check_batch
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.base import AttackMethod
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class PGDAT(AttackMethod):
    """L_i = CE(f(x'_i), y_i), x' from PGD on the cross-entropy with a random start.

    With targets, PGD descends the cross-entropy of another class, as is usual for data sets of many similar classes.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given.
        steps: Steps of PGD.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" as in Rice et al. 2020, or
            "batch_stats".
        targets: The class that the attack aims at: "random", another one than the label with equal probability, or
            "least_likely", that of the smallest logit of the clean image, which takes one more forward pass; None aims
            at none.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Madry et al. 2018, Eq. 2.1 and 2.2. Targets: Kurakin et al. 2017, Sec. 2 (least likely); Xie et al. 2019,
        "Feature Denoising for Improving Adversarial Robustness", Sec. 5 (random).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> opt = pyengm.MSGD(model.parameters(), lr=0.1)
        >>> steps = pyengm.train_step(pyengm.methods.PGDAT(eps=8 / 255, steps=10), model, opt, x, y)
    """

    info = MethodInfo(
        name="pgd_at",
        title="PGD adversarial training",
        reference="Madry et al. 2018",
        passes=PassCounts(1, 1, 1, per_step=True),
        optimizer=None,
        is_pgd=True,
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        norm: str = "linf",
        bn: str = "eval",
        targets: str | None = None,
    ):
        if targets is not None and targets not in TARGETS:
            raise ConfigError(f"targets is {targets!r}; known: {', '.join(TARGETS)}, or None")
        loss = "ce" if targets is None else "targeted"
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, loss=loss, bn=bn)
        self.threat, self.targets = self.attack.threat, targets

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        aim = y if self.targets is None else self._aim(model, x, y, key)
        return self.attack(model, x, aim, key=key)

    @torch.no_grad()
    def _aim(self, model: nn.Module, x: Tensor, y: Tensor, key: Key) -> Tensor:
        """(n,) int64, another class than the label, or the likeliest one of probabilities."""
        x, y = check_batch(x, y, soft=True)
        own = y.argmax(dim=1) if y.is_floating_point() else y
        with attack_mode(model, self.attack.bn):
            logits = logits_of(model, x if self.targets == "least_likely" else x[:1])
        assert self.targets is not None
        return wrong_labels(self.targets, logits, own, key)
