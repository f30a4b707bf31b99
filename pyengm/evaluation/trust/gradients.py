"""Gradients that attacks can follow."""

from torch import Tensor

from pyengm.attacks import attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.losses import loss_named
from pyengm.evaluation.trust.check import Check
from pyengm.evaluation.trust.probe import Probe

LOSSES = {"ce": "cross-entropy", "margin": "the margin"}
ALLOWED = 0.01  # share of the images


def check_gradients(probe: Probe) -> Check:
    """The gradients of cross-entropy and of the margin in the images are not zero."""
    share = {title: _zero(probe, name).double().mean().item() for name, title in LOSSES.items()}
    figure = ", ".join(f"zero on {100 * value:.1f} % of the images for {title}" for title, value in share.items())
    return Check("gradients", "gradients are not zero", max(share.values()) <= ALLOWED, figure)


def _zero(probe: Probe, loss: str) -> Tensor:
    """Whether the gradient is zero, (n,) bool."""
    with attack_mode(probe.model, "eval"):
        grad, _, _ = input_grad(probe.model, probe.x, loss_named(loss), probe.y)
    return ~grad.flatten(1).any(dim=1)
