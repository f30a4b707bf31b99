"""Transfer attacks: adversarial examples of one model, tried on another (black box, as in Wang et al. 2019)."""

from typing import Any

from torch import Tensor, nn


class Transfer:
    """Attacks a surrogate in place of the model under attack, which is never run.

    `accuracy(model, data, Transfer(PGD(...), surrogate), ...)` is the black-box accuracy of the model.

    Args:
        attack: the attack on the surrogate, such as PGD(...).
        surrogate: a model for the same images and classes.

    References:
        Wang et al. 2019, "On the convergence and robustness of adversarial training": the black-box setting.
    """

    def __init__(self, attack: Any, surrogate: nn.Module):
        self.attack, self.surrogate = attack, surrogate

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """Attacks the surrogate.

        Args:
            model: ignored.
            x: images (n, ...) in [0, 1].
            y: labels (n,) int64.
            **options: further arguments of `attack`, such as key.

        Returns:
            attack(surrogate, x, y, **options), images (n, ...) within the threat model of `attack`.
        """
        return self.attack(self.surrogate, x, y, **options)

    @property
    def keyed(self) -> bool:
        """Whether the attack takes `key`, which determines its random numbers; attacks of the PGD family do."""
        return getattr(self.attack, "keyed", False)
