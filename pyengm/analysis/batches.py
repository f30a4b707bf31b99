"""What the analyses share: batches of images under an attack, with the mode of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks.model_state import running_statistics_kept
from pyengm.attacks.validation import check_batch
from pyengm.errors import ConfigError
from pyengm.ops import Key

BATCH_SIZE = 64
MODES = ("eval", "train")


def batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images (b, ...), labels (b,) and positions (b,) in turn.

    Raises:
        DataError: images or labels do not fit.
        ConfigError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
    x, y = check_batch(images, labels)
    for index in torch.arange(len(x), device=x.device).split(batch_size):
        yield x[index], y[index], index


def attacked(model: nn.Module, attack: Any, x: Tensor, y: Tensor, index: Tensor, seed: int) -> Tensor:
    """Adversarial images (b, ...); x itself without an attack. Random starts depend on the seed and the positions."""
    if attack is None:
        return x.detach()
    options = {"key": Key(seed, 0, index)} if getattr(attack, "keyed", False) else {}
    return attack(model, x, y, **options).detach()


@contextmanager
def model_mode(model: nn.Module, bn: str) -> Iterator[None]:
    """A context with the model in a mode, "eval" or "train", in which nothing updates running statistics.

    Unlike in `attack_mode`, parameters keep their gradients.

    Raises:
        ConfigError: the mode is unknown.
    """
    if bn not in MODES:
        raise ConfigError(f"bn is {bn!r}; expected {' or '.join(MODES)}")
    before = {module: module.training for module in model.modules()}
    model.train(bn == "train")
    try:
        with running_statistics_kept(model):
            yield
    finally:
        for module, training in before.items():
            module.training = training
