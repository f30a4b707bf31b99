"""Residual networks with pre-activation (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

from collections import OrderedDict

from torch import Tensor, nn

from pyengm.models.init import he_init
from pyengm.models.norm import create_norm_layer


def preact_resnet18(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18 in its CIFAR form: 3x3 stem, no max-pool.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: not used: the network takes any size.
        norm_layer: "bn" or "gn".
        width: channels of the stem and of the first stage; each later stage doubles them.

    References:
        He et al. 2016, "Identity Mappings in Deep Residual Networks", Fig. 1 (b).
    """
    widths = [width, 2 * width, 4 * width, 8 * width]
    return preact_network(width, widths, 2, num_classes, in_channels, norm_layer)


class PreActBlock(nn.Module):
    """Norm layer and ReLU before each of two 3x3 convolutions.

    A shortcut that changes the shape starts after the first ReLU.

    Args:
        in_channels: the channels of the input.
        channels: the channels of the output.
        stride: of the first convolution and of the shortcut.
        norm_layer: "bn" or "gn".
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm_layer: str) -> None:
        super().__init__()
        self.preact = nn.Sequential(create_norm_layer(norm_layer, in_channels), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.preact(x)
        return self.residual(h) + (x if self.shortcut is None else self.shortcut(h))


def preact_network(
    stem: int, widths: list[int], depth: int, num_classes: int, in_channels: int, norm_layer: str
) -> nn.Module:
    """A 3x3 convolution, stages of `PreActBlock`s, norm layer, ReLU, mean over the map, and a dense layer.

    Args:
        stem: channels of the first convolution.
        widths: channels of each stage; every stage but the first halves the map.
        depth: blocks per stage.
        num_classes: the number of logits.
        in_channels: the channels of the images.
        norm_layer: "bn" or "gn".
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(in_channels, stem, 3, padding=1, bias=False))
    channels = stem
    for i, width in enumerate(widths, 1):
        first = PreActBlock(channels, width, 1 if i == 1 else 2, norm_layer)
        layers[f"stage{i}"] = nn.Sequential(
            first, *(PreActBlock(width, width, 1, norm_layer) for _ in range(depth - 1))
        )
        channels = width
    layers["norm"] = create_norm_layer(norm_layer, channels)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_classes)
    return he_init(nn.Sequential(layers))
