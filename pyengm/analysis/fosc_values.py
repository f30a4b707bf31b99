"""FOSC along an attack: how far its iterates are from stationary."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyengm.analysis.images import ImageBatch, analysis_mode
from pyengm.attacks import ThreatModel
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError
from pyengm.ops import fosc


class Ascent(NamedTuple):
    """PGD of K steps on the cross-entropy, whose iterates are looked at.

    Attributes:
        threat: The threat model.
        step_size: In pixel units; None for eps / 4.
        steps: K.
        random_start: Whether to begin at a random point of the ball.
        box: Whether the FOSC is over the ball within [0, 1], in L-infinity; as printed it is over the whole ball.
    """

    threat: ThreatModel
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    box: bool = False

    def check(self) -> "Ascent":
        """Raises ConfigError for values that do not fit; returns itself."""
        if self.box and self.threat.norm != "linf":
            raise ConfigError(f"box=True has a closed form in L-infinity only; the threat model is {self.threat}")
        if self.steps < 1 or not (self.step_size is None or self.step_size >= 0):
            raise ConfigError(f"expected 1 step or more of size >= 0, got {self.steps} of {self.step_size}")
        return self


def fosc_in_box(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float) -> Tensor:
    """FOSC over the points that the L-infinity ball around x and [0, 1] share.

    Args:
        x_adv: (n, ...) iterates.
        grad: (n, ...) gradients of the losses at them.
        x: (n, ...) images in [0, 1].
        eps: Radius in pixel units.

    Returns:
        (n,) max over x' of <x' - x_adv, grad>. The set is a box: each coordinate has its own maximum, at an end.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    gain = torch.maximum((low - x_adv) * grad, (high - x_adv) * grad)
    return gain.flatten(1).sum(dim=1)


def fosc_along(model: nn.Module, batch: ImageBatch, ascent: Ascent, bn: str) -> tuple[Tensor, Tensor, Tensor]:
    """FOSC, loss and whether the model is right at the start and after each step.

    Returns:
        (K + 1, b) each.
    """
    threat, x = ascent.threat, batch.x
    step_size = threat.eps / 4 if ascent.step_size is None else ascent.step_size
    x_adv = x.clone()
    if ascent.random_start:
        x_adv = threat.project_(x_adv + threat.uniform(x, batch.key), x)
    rows = []
    with analysis_mode(model, bn, batch.key.seed):
        for step in range(ascent.steps + 1):
            grad, losses, logits = input_grad(model, x_adv, cross_entropy, batch.y)
            if ascent.box:
                values = fosc_in_box(x_adv, grad, x, threat.eps)
            else:
                values = fosc(x_adv, grad, x, threat.eps, norm=threat.norm)
            rows.append((values, losses, logits.argmax(dim=1) == batch.y))
            if step < ascent.steps:
                threat.step_(x_adv, grad, x, step_size)
    values, losses, correct = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return values, losses, correct
