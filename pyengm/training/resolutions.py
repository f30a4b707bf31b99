"""Resolutions: the height and width of training images as a function of the epoch."""

from collections.abc import Sequence

import torch
from torch import nn

from pyengm.attacks import attack_mode
from pyengm.errors import ConfigError


def parse_resolutions(words: Sequence[str]) -> dict[int, int]:
    """The sides of the images in pixels by the epoch, counted from 0, from which they hold.

    Args:
        words: Such as "0:128" "30:160", in the order of the epochs.

    Raises:
        ConfigError: For other words, or epochs that do not rise.
    """
    found: dict[int, int] = {}
    for word in words:
        epoch, _, side = word.partition(":")
        if not all(number.isascii() and number.isdigit() for number in (epoch, side)) or int(side) < 1:
            raise ConfigError(f"resolutions has {word!r}; expected EPOCH:PIXELS, such as 0:128, epochs counted from 0")
        if int(epoch) <= max(found, default=-1):
            raise ConfigError(f"resolutions are {' '.join(words)}; expected epochs that rise")
        found[int(epoch)] = int(side)
    return found


def check_epochs(words: Sequence[str], epochs: int) -> None:
    """Raises ConfigError for resolutions that a run of so many epochs does not reach."""
    last = max(parse_resolutions(words), default=-1)
    if last >= epochs:
        raise ConfigError(f"resolutions begin one at epoch {last}, and the run has {epochs} epochs, counted from 0")


def check_model(model: nn.Module, shape: tuple[int, int, int], words: Sequence[str]) -> None:
    """Passes an image of every side through the model, so that an error comes before the training.

    Args:
        model: The model.
        shape: (C, H, W) of the images at their full size.
        words: As for `parse_resolutions`.

    Raises:
        ConfigError: The model does not take such images.
    """
    device = next(model.parameters()).device
    for side in sorted(set(parse_resolutions(words).values())):
        try:
            with attack_mode(model, "eval"), torch.no_grad():
                model(torch.zeros(1, shape[0], side, side, device=device))
        except RuntimeError as error:
            raise ConfigError(
                f"resolutions has {side} pixels, which a {type(model).__name__} made for {shape[1]} does not take "
                f"({str(error).splitlines()[0]}): choose a model that pools over images of any size, such as resnet18"
            ) from error
