"""A model, a few images and a threat model, on which the checks run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, ThreatModel, attack_mode
from pyengm.attacks.keyed import run_attack
from pyengm.attacks.logits import logits_of
from pyengm.attacks.validation import finite_logits
from pyengm.data import ImageDataset, Loader
from pyengm.models import memory_format_of
from pyengm.ops import Key

MAX_IMAGES = 100


@dataclass(frozen=True, eq=False)
class Probe:
    """What the checks look at.

    Args:
        model: classifier of images in [0, 1], in evaluation mode during the checks.
        x: images (n, c, h, w) in [0, 1].
        y: labels (n,) int64.
        threat: the threat model.
        key: key of the random numbers.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    key: Key

    @classmethod
    def of(
        cls, model: nn.Module, data: ImageDataset, threat: ThreatModel, *, seed: int, device: torch.device
    ) -> "Probe":
        """A probe of at most MAX_IMAGES images, spread evenly over the data."""
        count = min(len(data), MAX_IMAGES)
        few = data.subset(torch.arange(count) * len(data) // count)
        loader = Loader(
            few, count, device=device, seed=seed, augment="none", shuffle=False, memory_format=memory_format_of(model)
        )
        batch = next(loader.epoch(0))
        return cls(model, batch.x, batch.y, threat, Key(seed, 0, batch.index))

    def logits(self, x: Tensor) -> Tensor:
        """Outputs (n, k) for images (n, c, h, w). Raises NonFiniteError where they are not finite."""
        with attack_mode(self.model, "eval"), torch.no_grad():
            return finite_logits(logits_of(self.model, x, self.y))

    def correct(self, x: Tensor) -> Tensor:
        """Whether each of the images (n, c, h, w) is classified correctly, (n,) bool."""
        return self.logits(x).argmax(dim=1) == self.y

    def attacked(self, attack: Callable[..., Tensor]) -> Tensor:
        """Adversarial examples (n, c, h, w) of an attack."""
        return run_attack(attack, self.model, self.x, self.y, self.key)

    def pgd(self, steps: int, eps: float | None = None) -> PGD:
        """PGD on the margin as the evaluations have it: steps of eps / 10, finer ones where there are more than 20."""
        eps = self.threat.eps if eps is None else eps
        return PGD(eps, eps * min(0.1, 2.5 / steps), steps, norm=self.threat.norm, loss="margin")

    @cached_property
    def natural(self) -> Tensor:
        """Whether each image is classified correctly as it is, (n,) bool."""
        return self.correct(self.x)

    @cached_property
    def pgd20_examples(self) -> Tensor:
        """Adversarial examples (n, c, h, w) of PGD-20."""
        return self.attacked(self.pgd(20))

    @cached_property
    def pgd20(self) -> Tensor:
        """Whether each image is classified correctly under PGD-20, (n,) bool."""
        return self.correct(self.pgd20_examples)

    def at(self, eps: float) -> ThreatModel:
        """The threat model with another radius."""
        return replace(self.threat, eps=eps)
