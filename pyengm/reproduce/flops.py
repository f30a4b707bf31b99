"""What an epoch of training costs, in floating-point operations: counted, not timed."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyengm.data import ImageDataset
from pyengm.models import build
from pyengm.training import TrainConfig

# Forward passes, gradients in the images and in the weights that a training image takes, at most: so many per step
# of the attack, and so many besides. Methods that are not here take PGD's.
PASSES = {
    "natural": (0, 3),
    "trades": (2, 7),
    "mart": (2, 6),
    "pgd_at_awp": (2, 6),
    "trades_awp": (2, 13),
    "mart_awp": (2, 10),
    "grad_align": (0, 15),
    "ssat": (0, 7),
    "free_at": (0, 24),
    "yopo": (0, 17),
    "nuat": (0, 8.5),
    "fgsm_sdi": (0, 9),
    "fgsm_pgi": (0, 7),
}
PGD_PASSES = (2, 3)
HELD_OUT_PASSES = 41  # a natural pass and PGD-20 on every held-out image, after every epoch


def epoch_flops(config: TrainConfig, train: ImageDataset, images: int, held_out: int) -> float:
    """Operations of one epoch on so many training and held-out images like those of `train`."""
    per_step, fixed = PASSES.get(config.method.name, PGD_PASSES)
    passes = per_step * (config.attack.steps or 1) + fixed
    return (passes * images + HELD_OUT_PASSES * held_out) * forward_flops(config, train)


def forward_flops(config: TrainConfig, data: ImageDataset) -> int:
    """Operations of one forward pass of one image through the model, two for a multiplication with an addition."""
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
