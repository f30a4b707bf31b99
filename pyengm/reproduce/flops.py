"""The cost of an epoch of training, in floating-point operations that are counted, not timed."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyengm.data import ImageDataset
from pyengm.methods import METHODS
from pyengm.models import build
from pyengm.training import TrainConfig

HELD_OUT_PASSES = 41  # a natural pass and PGD-20 on every held-out image, after every epoch


def epoch_flops(config: TrainConfig, train: ImageDataset, images: int, held_out: int) -> float:
    """Returns the floating-point operations of one epoch.

    Args:
        config: The run, resolved.
        train: Images of the shape that the model gets.
        images: The number of training images.
        held_out: The number of held-out images.
    """
    passes = METHODS[config.method.name].info.passes.total(config.attack.steps)
    return (passes * images + HELD_OUT_PASSES * held_out) * forward_flops(config, train)


def forward_flops(config: TrainConfig, data: ImageDataset) -> int:
    """Returns the operations of one forward pass of one image; a multiplication with an addition counts as two."""
    with torch.device("meta"):
        model = build(
            config.model.name,
            num_classes=data.num_classes,
            in_channels=data.channels,
            image_size=data.image_size,
            norm_layer=config.model.norm_layer,
            width=config.model.width,
        ).eval()
        image = torch.empty(1, *data.shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()
