"""Wide residual networks (Zagoruyko and Komodakis 2016, "Wide Residual Networks")."""

from torch import nn

from pyengm.models.preact_resnet import preact_network


def wrn_28_10(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 16) -> nn.Module:
    """WRN-28-10 without dropout.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: not used: the network takes any size.
        norm_layer: "bn" or "gn".
        width: channels of the stem; the three stages have 10, 20 and 40 times as many, so 16 gives 160, 320 and 640.

    References:
        Zagoruyko and Komodakis 2016, Table 1 with N = 4, k = 10.
    """
    return _wide_resnet(28, 10, num_classes, in_channels, norm_layer, width)


def wrn_34_10(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 16) -> nn.Module:
    """WRN-34-10 without dropout.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: not used: the network takes any size.
        norm_layer: "bn" or "gn".
        width: channels of the stem; the three stages have 10, 20 and 40 times as many, so 16 gives 160, 320 and 640.

    References:
        Zagoruyko and Komodakis 2016, Table 1 with N = 5, k = 10.
    """
    return _wide_resnet(34, 10, num_classes, in_channels, norm_layer, width)


def _wide_resnet(depth: int, k: int, num_classes: int, in_channels: int, norm_layer: str, width: int) -> nn.Module:
    widths = [k * width, 2 * k * width, 4 * k * width]
    return preact_network(width, widths, (depth - 4) // 6, num_classes, in_channels, norm_layer)
