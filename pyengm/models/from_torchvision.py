"""Classifiers of torchvision, with fresh weights."""

import torch
from torch import nn

from pyengm.errors import ConfigError


def installed() -> bool:
    """Always: torchvision is a dependency of pyengm."""
    return True


def names() -> list[str]:
    """Names of torchvision's classifiers."""
    from torchvision import models  # slow to import, and our own models do without

    return models.list_models(module=models)


def build(name: str, num_classes: int, in_channels: int, image_size: int, width: int | None) -> nn.Module:
    """A torchvision classifier without pretrained weights.

    image_size goes to the transformers that fix it (vit_*, maxvit_t). width is width_per_group: the channels
    of a bottleneck's 3x3 convolution per group, in the first stage.

    Raises:
        ConfigError: torchvision refuses the options, or width or in_channels has no place in this network.
    """
    from torchvision import models

    options = {"num_classes": num_classes}
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
    path, old = next(((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if old is None or old.in_channels != 3 or old.groups != 1:
        raise ConfigError(f"{name} has no first convolution on 3 channels to replace; use in_channels=3")
    bias = old.bias is not None
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias)
    # The spread of the old weights, scaled so that the variance of the output stays.
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std() * (3 / in_channels) ** 0.5)
    if bias:
        new.bias = old.bias
    network.set_submodule(path, new)
