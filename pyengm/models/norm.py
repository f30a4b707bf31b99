"""The choice of normalisation layer: batch norm, or group norm, which does not couple the examples of a batch."""

from collections import OrderedDict

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.errors import ConfigError


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most 32, of at least 8 channels each.

    Source: Wu and He 2018, "Group Normalization", Table 3 (few channels a group lose accuracy).
    """
    # On a 1x1 map a group of one channel normalises to zero, of two to a sign: no gradient would flow.
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 8))
    return nn.GroupNorm(groups, channels)


NORMS = {"bn": nn.BatchNorm2d, "gn": group_norm}


def norm2d(kind: str, channels: int) -> nn.Module:
    """The layer of a kind, "bn" or "gn", for maps of shape (n, channels, height, width)."""
    return NORMS[kind](channels)


def replace_batch_norm(network: nn.Module) -> nn.Module:
    """Puts a GroupNorm in the place of every BatchNorm2d of a network, in place, and returns the network.

    Raises:
        ConfigError: there is no BatchNorm2d, or a batch norm of another type would stay behind.
    """
    everywhere = network.named_modules(remove_duplicate=False)  # a shared layer has several paths
    found = [(path, module) for path, module in everywhere if isinstance(module, _BatchNorm)]
    if not found:
        raise ConfigError('norm="gn" replaces BatchNorm2d layers, but this network has none; use norm="bn"')
    for path, module in found:
        network.set_submodule(path, _as_group_norm(path, module))
    return network


def _as_group_norm(path: str, bn: nn.Module) -> nn.Module:
    # timm's BatchNormAct2d carries its dropout and activation; any other subclass might do anything.
    fused = hasattr(bn, "drop") and hasattr(bn, "act")
    if not isinstance(bn, nn.BatchNorm2d) or not (fused or type(bn) is nn.BatchNorm2d):
        raise ConfigError(
            f'norm="gn" replaces BatchNorm2d layers, but {path} is a {type(bn).__name__}; '
            'use norm="bn" or another network'
        )
    gn = group_norm(bn.num_features)
    gn.eps = bn.eps
    # The network's own initialisation stays: zero for the last norm of a block, or None without affine parameters.
    gn.weight, gn.bias = bn.weight, bn.bias
    if not fused:
        return gn
    return nn.Sequential(OrderedDict(norm=gn, drop=bn.drop, act=bn.act))
