"""A small VGG."""

from collections import OrderedDict

from torch import nn

from pyengm.models.init import he_init
from pyengm.models.norm import create_norm_layer


def vgg8(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int = 64) -> nn.Module:
    """VGG-8: 5 convolutions with norm layer and max-pool, then 3 dense layers; no dropout.

    Max-pools stop when the map is one pixel, so small images work: 32x32 and 8x8 both end at 1x1.

    Args:
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels, which size the first dense layer.
        norm_layer: "bn" or "gn".
        width: channels of the first convolution; the others have 2, 4, 8 and 8 times as many, the dense layers 8 times.

    References:
        Dabouei et al. 2022, "Revisiting Outer Optimization in Adversarial Training", which names VGG-8 without its
        layers; these follow Simonyan and Zisserman 2015, Table 1, with one convolution a stage and dense layers for
        CIFAR.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, channels in enumerate([width, 2 * width, 4 * width, 8 * width, 8 * width], 1):
        stage = [
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),  # the norm layer has the bias
            create_norm_layer(norm_layer, channels),
            nn.ReLU(inplace=True),
        ]
        if image_size >= 2:
            stage.append(nn.MaxPool2d(2))
            image_size //= 2
        layers[f"stage{i}"] = nn.Sequential(*stage)
        in_channels = channels
    hidden = 8 * width
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(in_channels * image_size**2, hidden)
    layers["relu1"] = nn.ReLU(inplace=True)
    layers["dense2"] = nn.Linear(hidden, hidden)
    layers["relu2"] = nn.ReLU(inplace=True)
    layers["head"] = nn.Linear(hidden, num_classes)
    return he_init(nn.Sequential(layers))
