"""The plain convolutional networks of Wang et al. 2019, Sec. 5.1."""

from collections import OrderedDict

from torch import nn

from pyengm.models.init import he_init
from pyengm.models.norm import create_norm_layer


def cnn4(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 32) -> nn.Module:
    """The 4-layer MNIST network: 2 convolutions, each with norm layer and max-pool, then 2 dense layers.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, which size the first dense layer.
        norm_layer: "bn" or "gn".
        width: channels of the first convolution; the second has twice, the hidden dense layer four times as many.

    References:
        Wang et al. 2019, "On the Convergence and Robustness of Adversarial Training", Sec. 5.1; widths from the
        authors' code.
    """
    blocks = [[width], [2 * width]]
    return _network(blocks, 4 * width, num_classes, in_channels, image_size, norm_layer)


def cnn8(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 64) -> nn.Module:
    """The 8-layer CIFAR-10 network: 3 blocks of 2 convolutions with norm layers and a max-pool, then 2 dense layers.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, which size the first dense layer.
        norm_layer: "bn" or "gn".
        width: channels of the first block; the second has twice, the third 49/16 times, the hidden dense layer four
            times as many (64, 128, 196 and 256).

    References:
        Wang et al. 2019, "On the Convergence and Robustness of Adversarial Training", Sec. 5.1; widths from the
        authors' code.
    """
    blocks = [[width] * 2, [2 * width] * 2, [49 * width // 16] * 2]
    return _network(blocks, 4 * width, num_classes, in_channels, image_size, norm_layer)


def _network(
    blocks: list[list[int]], hidden: int, num_classes: int, in_channels: int, image_size: int, norm_layer: str
) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, block in enumerate(blocks, 1):
        layers[f"block{i}"] = nn.Sequential(*_convolutions(in_channels, block, norm_layer), nn.MaxPool2d(2))
        in_channels = block[-1]
        image_size //= 2
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(in_channels * image_size**2, hidden)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["head"] = nn.Linear(hidden, num_classes)
    return he_init(nn.Sequential(layers))


def _convolutions(in_channels: int, block: list[int], norm_layer: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels in block:
        layers += [
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),  # the norm layer has the bias
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return layers
