"""Attacks with random numbers of the images' own, and attacks without."""

from collections.abc import Callable

from torch import Tensor

from pyengm.attacks.logits import Model
from pyengm.ops import Key


def run_attack(attack: Callable[..., Tensor], model: Model, x: Tensor, y: Tensor, key: Key) -> Tensor:
    """Calls an attack, with a key where it takes one.

    Args:
        attack: called as attack(model, x, y), with key= where its attribute `keyed` is true, as in the PGD family.
        model: classifier of images in [0, 1].
        x: images (n, ...) in [0, 1].
        y: labels (n,) int64.
        key: determines the random numbers.

    Returns:
        Adversarial examples like x.
    """
    return attack(model, x, y, key=key) if getattr(attack, "keyed", False) else attack(model, x, y)
