"""Classifiers of timm (an optional extra), with fresh weights."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import nn

from pyengm.errors import ConfigError

INSTALL = 'timm is not installed: pip install "pyengm[timm]"'


def installed() -> bool:
    """Whether timm can be imported."""
    return find_spec("timm") is not None


def list_models() -> list[str]:
    """Names of timm's classifiers, without tags of pretrained weights.

    Raises:
        ConfigError: timm is not installed.
    """
    if not installed():
        raise ConfigError(INSTALL)
    import timm  # optional, and slow to import

    return timm.list_models()


def build(name: str, num_classes: int, in_channels: int, image_size: int, width: int | None) -> nn.Module:
    """A timm classifier without pretrained weights.

    Args:
        name: one of `list_models()`.
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, for the networks that fix it (img_size).
        width: must be None.

    Raises:
        ConfigError: timm refuses the options, or width is given.
    """
    import timm

    if width is not None:
        raise ConfigError(f"width has no meaning for timm's {name}; leave it None")
    options = {"num_classes": num_classes, "in_chans": in_channels, "img_size": image_size}
    try:
        return _create(timm.create_model, name, options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm cannot build {name} with {options}: {error}") from error


def _create(create_model: Callable[..., nn.Module], name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return create_model(name, pretrained=False, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error) or "img_size" not in str(error):
            raise
    # Most convolutional networks take any size, so they have no img_size.
    del options["img_size"]
    return create_model(name, pretrained=False, **options)
