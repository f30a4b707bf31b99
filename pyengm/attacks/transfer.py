"""Transfer attacks: adversarial examples of one model, shown to another (black box, as in Wang et al. 2019)."""

from typing import Any

from torch import Tensor, nn


class Transfer:
    """Attacks `surrogate` with `attack`, whatever model is under attack, which is never run.

    accuracy(model, data, Transfer(PGD(...), surrogate)) is the black-box accuracy of model.
    attack: such as PGD(...). surrogate: takes the same images and has the same classes.
    """

    def __init__(self, attack: Any, surrogate: nn.Module):
        self.attack, self.surrogate = attack, surrogate

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """attack(surrogate, x, y, **options), so images within the threat model of `attack`."""
        return self.attack(self.surrogate, x, y, **options)

    @property
    def keyed(self) -> bool:
        """Does it take `key`, the random numbers to use? Attacks of the PGD family do."""
        return getattr(self.attack, "keyed", False)
