"""Normalisation layers: batch norm, or group norm, with which the examples of a batch are independent."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.errors import ConfigError


def group_norm(channels: int) -> nn.GroupNorm:
    """A GroupNorm with as many groups as divide the channels, at most 32, of at least 8 channels each.

    Args:
        channels: the number of channels.

    References:
        Wu and He 2018, "Group Normalization", Table 3 (few channels a group lose accuracy).
    """
    # On a 1x1 map a group of one channel normalises to zero, of two to a sign: no gradient would flow.
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 8))
    return nn.GroupNorm(groups, channels)


NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {"bn": nn.BatchNorm2d, "gn": group_norm}


def create_norm_layer(kind: str, channels: int) -> nn.Module:
    """A normalisation layer.

    Args:
        kind: one of `NORM_LAYERS`, "bn" or "gn".
        channels: the number of channels of its input (n, channels, height, width).
    """
    return NORM_LAYERS[kind](channels)


def replace_batch_norm(network: nn.Module) -> nn.Module:
    """Replaces every BatchNorm2d of a network by a GroupNorm.

    Args:
        network: changed in place.

    Returns:
        The network.

    Raises:
        ConfigError: there is no BatchNorm2d, or a batch norm of another type would remain.
    """
    everywhere = network.named_modules(remove_duplicate=False)  # a shared layer has several paths
    found = [(path, module) for path, module in everywhere if isinstance(module, _BatchNorm)]
    if not found:
        raise ConfigError('norm_layer="gn" replaces BatchNorm2d layers, but this network has none; use norm_layer="bn"')
    for path, module in found:
        network.set_submodule(path, _as_group_norm(path, module))
    return network


def _as_group_norm(path: str, bn: _BatchNorm) -> nn.Module:
    # timm's BatchNormAct2d carries its dropout and activation; any other subclass might do anything.
    fused = hasattr(bn, "drop") and hasattr(bn, "act")
    if not isinstance(bn, nn.BatchNorm2d) or not (fused or type(bn) is nn.BatchNorm2d):
        raise ConfigError(
            f'norm_layer="gn" replaces BatchNorm2d layers, but {path} is a {type(bn).__name__}; '
            'use norm_layer="bn" or another network'
        )
    gn = group_norm(bn.num_features)
    gn.eps = bn.eps
    # The network's own initialisation stays: zero for the last norm of a block, or None without affine parameters.
    gn.weight, gn.bias = bn.weight, bn.bias
    if not fused:
        return gn
    return nn.Sequential(OrderedDict(norm=gn, drop=bn.get_submodule("drop"), act=bn.get_submodule("act")))
