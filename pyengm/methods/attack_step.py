"""What the one-step methods share: checks of their arguments, and a gradient in the mode of an attack."""

import math
from functools import partial

from torch import Tensor, nn

from pyengm.attacks import BN_MODES, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.errors import ConfigError
from pyengm.ops import Key

# Of the papers on one-step training after Wong et al. 2020, for CIFAR-10
CYCLIC = {
    "model": "preact_resnet18",
    "lr": 0.2,
    "schedule": "cyclic",
    "pct_start": 0.5,
    "epochs": 30,
    "select_on": "none",
}


def check_numbers(**values: float) -> None:
    """Raises ConfigError, with its name, for a value that is not finite or below 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} is {value}; expected a finite number >= 0")


def check_bn(bn: str) -> None:
    """Raises ConfigError for an unknown batch-norm mode."""
    if bn not in BN_MODES:
        raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")


def checked(x: Tensor, y: Tensor, key: Key | None) -> tuple[Tensor, Tensor]:
    """The images, detached, and the labels of a batch, see `check_batch`. Raises DataError for what does not fit."""
    x, y = check_batch(x, y, soft=True)
    check_extras(x, None, key, None)
    return x.detach(), y


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor, bn: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in images x (n, ...) of their cross-entropies, the cross-entropies (n,) and the logits (n, k).

    bn: the batch-norm mode. Raises NonFiniteError for losses and gradients that are not finite.
    """
    with attack_mode(model, bn):
        grad, losses, logits = input_grad(CheckedModel(model, y), x, partial(cross_entropy, y=y))
    check_finite(losses, grad)
    return grad, losses, logits
