"""Initialisation of our own models."""

from torch import nn


def he_init(network: nn.Module) -> nn.Module:
    """Draws every convolution's weight from He's normal distribution (fan out), in place, and returns the network.

    All other layers keep torch's default. Source: He et al. 2015, "Delving Deep into Rectifiers", Sec. 2.2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
