"""The outcome of a check, and the comparison of two attacks on the same images."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Args:
        name: its name in results.
        title: what holds for a model whose robust accuracy can be trusted.
        passed: whether it holds.
        figure: the numbers that decided, as text.
    """

    name: str
    title: str
    passed: bool
    figure: str


def is_stronger(correct: Tensor, other: Tensor) -> bool:
    """Whether an attack fools a model on more images than another one, by more than chance.

    Args:
        correct: (n,) bool, the images that the model still classifies correctly under the attack.
        other: (n,) bool, those under the other attack.

    Returns:
        Whether b - a > 2 sqrt(a + b), where a and b are the numbers of images that only the other attack and only this
        one fools the model on: two standard deviations where both are equally strong (McNemar 1947).
    """
    only_other, only_this = int((correct & ~other).sum()), int((~correct & other).sum())
    return only_this - only_other > 2 * (only_this + only_other) ** 0.5


def percent(correct: Tensor) -> str:
    """Share of true values (n,) as text, such as 41.0 %."""
    return f"{100 * correct.double().mean().item():.1f} %"
