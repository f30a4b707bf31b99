"""Classifiers of torchvision, with fresh weights."""

from typing import Any

import torch
from torch import nn

from pyengm.errors import ConfigError


def installed() -> bool:
    """True: torchvision is a dependency of pyengm."""
    return True


def list_models() -> list[str]:
    """Names of torchvision's classifiers."""
    from torchvision import models  # slow to import, and pyengm's own models do without

    return models.list_models(module=models)


def build(name: str, num_classes: int, in_channels: int, image_size: int, width: int | None) -> nn.Module:
    """A torchvision classifier without pretrained weights.

    Args:
        name: one of `list_models()`.
        num_classes: the number of logits.
        in_channels: the channels of the images; other than 3, the first convolution is replaced.
        image_size: height and width of the images in pixels, for the transformers that fix it (vit_*, maxvit_t).
        width: width_per_group of the resnets: the channels of a bottleneck's 3x3 convolution per group, in the first
            stage.

    Raises:
        ConfigError: torchvision refuses the options, or this network has no width or no fitting first convolution.
    """
    from torchvision import models

    options: dict[str, Any] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):  # with auxiliary heads, training mode returns a tuple
        options |= {"aux_logits": False, "init_weights": True}
    if width is not None:
        if "resnet" not in name and "resnext" not in name:
            raise ConfigError(f"width works for torchvision's resnets only, not for {name}; leave it None")
        options["width_per_group"] = width
    try:
        network = models.get_model(name, weights=None, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"torchvision cannot build {name} with {options}: {error}") from error
    if in_channels != 3:
        _replace_first_conv(name, network, in_channels)
    return network


def _replace_first_conv(name: str, network: nn.Module, in_channels: int) -> None:
    found = next(((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)
    if found is None or found[1].in_channels != 3 or found[1].groups != 1:
        raise ConfigError(f"{name} has no first convolution on 3 channels to replace; use in_channels=3")
    path, old = found
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # pyright: ignore[reportArgumentType]  # a pair, which the stubs call a tuple of any length
        old.stride,  # pyright: ignore[reportArgumentType]
        old.padding,  # pyright: ignore[reportArgumentType]
        old.dilation,  # pyright: ignore[reportArgumentType]
        bias=old.bias is not None,
    )
    # The spread of the old weights, scaled so that the variance of the output stays.
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std() * (3 / in_channels) ** 0.5)
    if old.bias is not None:
        new.bias = old.bias
    network.set_submodule(path, new)
