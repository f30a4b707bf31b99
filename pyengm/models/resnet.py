"""Residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

from collections import OrderedDict

from torch import Tensor, nn

from pyengm.models.init import he_init
from pyengm.models.norm import create_norm_layer


def resnet18(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 64) -> nn.Module:
    """ResNet-18; a 3x3 stem without max-pool up to 64 pixels, the ImageNet stem (7x7, stride 2, max-pool) above.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, which choose the stem.
        norm_layer: "bn" or "gn".
        width: channels of the stem and of the first stage; each later stage doubles them.

    References:
        He et al. 2016, Sec. 3.3 and Table 1.
    """
    return _resnet(BasicBlock, [2, 2, 2, 2], num_classes, in_channels, image_size, norm_layer, width)


def resnet50(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 64) -> nn.Module:
    """ResNet-50; a 3x3 stem without max-pool up to 64 pixels, the ImageNet stem (7x7, stride 2, max-pool) above.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, which choose the stem.
        norm_layer: "bn" or "gn".
        width: channels of the stem and of the first stage's bottlenecks; each later stage doubles them.

    References:
        He et al. 2016, Sec. 3.3 and Table 1, with the stride in the 3x3 convolution (Goyal et al. 2017, Sec. 5.1).
    """
    return _resnet(Bottleneck, [3, 4, 6, 3], num_classes, in_channels, image_size, norm_layer, width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: the channels of the input.
        channels: the channels of the output.
        stride: of the first convolution and of the shortcut.
        norm_layer: "bn" or "gn".
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm_layer: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            create_norm_layer(norm_layer, channels),
        )
        self.shortcut = _shortcut(in_channels, channels, stride, norm_layer)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut.

    Args:
        in_channels: the channels of the input.
        channels: the channels of the first two convolutions; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.
        norm_layer: "bn" or "gn".
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm_layer: str) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            create_norm_layer(norm_layer, out_channels),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm_layer)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm_layer: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), create_norm_layer(norm_layer, out_channels)
    )


def _stem(in_channels: int, width: int, image_size: int, norm_layer: str) -> nn.Module:
    rest: list[nn.Module] = [create_norm_layer(norm_layer, width), nn.ReLU(inplace=True)]
    if image_size <= 64:
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), *rest)
    conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, *rest, nn.MaxPool2d(3, stride=2, padding=1))


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: list[int],
    num_classes: int,
    in_channels: int,
    image_size: int,
    norm_layer: str,
    width: int,
) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(in_channels, width, image_size, norm_layer))
    in_channels = width
    for i, depth in enumerate(depths):
        stage = []
        for k in range(depth):
            stage.append(block(in_channels, width * 2**i, 2 if i > 0 and k == 0 else 1, norm_layer))
            in_channels = width * 2**i * block.expansion
        layers[f"stage{i + 1}"] = nn.Sequential(*stage)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(in_channels, num_classes)
    return he_init(nn.Sequential(layers))
