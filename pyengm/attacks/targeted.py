"""Targeted PGD (Kurakin et al. 2017): towards given labels, the least likely ones or random ones."""

from typing import Any

import torch
from torch import Tensor

from pyengm.attacks.logits import Model, logits_of
from pyengm.attacks.model_state import attack_mode
from pyengm.attacks.pgd import PGD
from pyengm.attacks.validation import check_batch, check_extras
from pyengm.errors import ConfigError, DataError
from pyengm.ops import Key, Purpose, philox_uniform

TARGETS = ("least_likely", "random")


class TargetedPGD:
    """PGD that descends the cross-entropy of a target label, by the `PGD` with loss "targeted".

    Args:
        eps, step_size, steps: As for `PGD`.
        target: "least_likely" for the wrong label of the smallest logit at x, "random" for a uniform wrong label, or
            the number of a class. An image of that class itself has no wrong label to aim at and stays as it is.
        **options: Further arguments of `PGD`, but loss.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Kurakin et al. 2017, "Adversarial Machine Learning at Scale", Sec. 2.
    """

    keyed = True

    def __init__(self, eps: float, step_size: float, steps: int, *, target: str | int = "least_likely", **options: Any):
        if isinstance(target, str) and target not in TARGETS:
            raise ConfigError(f"target is {target!r}; expected {', '.join(TARGETS)} or the number of a class")
        if isinstance(target, int) and target < 0:
            raise ConfigError(f"target is {target}; expected the number of a class, 0 or more")
        self.pgd, self.target = PGD(eps, step_size, steps, loss="targeted", **options), target

    @property
    def bn(self) -> str:
        """Mode of the model during the attack."""
        return self.pgd.bn

    @bn.setter
    def bn(self, mode: str) -> None:
        self.pgd.bn = mode

    @torch.inference_mode(False)
    def __call__(
        self, model: Model, x: Tensor, y: Tensor, *, key: Key | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Computes adversarial examples.

        Args:
            model: Maps images to logits (n, k). It is left as it was.
            x: (n, ...) images in [0, 1].
            y: (n,) int64 labels.
            key: Selects the random numbers; None takes a fresh seed from torch's default generator.
            start: As for `PGD`.

        Returns:
            A tensor like x that requires no gradient.

        Raises:
            DataError: As for `PGD`, and for a class that the model does not have.
            ModelError, NonFiniteError: As for `PGD`.
        """
        x, y = check_batch(x, y)
        check_extras(x, start, key, None)
        key = Key.fresh(len(x), x.device) if key is None else key
        targets = self.targets(model, x, y, key)
        x_adv = self.pgd(model, x, targets, key=key, start=start)
        own = (targets == y).view(-1, *[1] * (x.dim() - 1))
        return torch.where(own, x, x_adv)

    def targets(self, model: Model, x: Tensor, y: Tensor, key: Key) -> Tensor:
        """The labels (n,) that the attack aims at; arguments and errors as for a call."""
        with attack_mode(model, self.pgd.bn), torch.no_grad():
            logits = logits_of(model, x, y)
        classes = logits.shape[1]
        if isinstance(self.target, str):
            return wrong_labels(self.target, logits, y, key)
        if self.target >= classes:
            raise DataError(f"target is {self.target}, and the model has classes from 0 to {classes - 1}")
        return torch.full_like(y, self.target)


def wrong_labels(choice: str, logits: Tensor, y: Tensor, key: Key) -> Tensor:
    """Labels for targeted attacks to aim at, none of which is the example's own.

    Args:
        choice: "least_likely" for the label of the smallest logit, or "random" for a uniform one.
        logits: (n, k) at the images, of which "random" reads only the number of classes.
        y: (n,) int64 labels.
        key: Selects the random numbers.

    Returns:
        (n,) int64 labels.
    """
    if choice == "least_likely":
        return logits.scatter(1, y[:, None], torch.inf).argmin(dim=1)
    uniform = philox_uniform(key.index, (), seed=key.seed, purpose=Purpose.TARGET, epoch=key.epoch)
    others = logits.shape[1] - 1
    return (y + 1 + (uniform * others).long().clamp(max=others - 1)) % (others + 1)
