"""Initialisation of pyengm's own models."""

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def he_init(network: Network) -> Network:
    """Draws the weights of all convolutions from He's normal distribution (fan out); other layers keep torch's default.

    Args:
        network: changed in place.

    Returns:
        The network.

    References:
        He et al. 2015, "Delving Deep into Rectifiers", Sec. 2.2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
