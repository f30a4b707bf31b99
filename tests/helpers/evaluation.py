"""A small network, images and checkpoints, for tests of evaluations and of checkpoints."""

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.models import CheckpointInfo, build

CPU = torch.device("cpu")
LINF, L2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.6)
OPTIONS = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "norm_layer": "bn", "width": 4}


def network(seed=0):
    torch.manual_seed(seed)
    model = build(**OPTIONS)
    model(torch.rand(32, 1, 8, 8))  # running statistics
    return model.eval()


def make_images(n=40, classes=10, side=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 1, side, side), generator=generator).to(torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return ImageDataset(images, labels, tuple(map(str, range(classes))), "made", "test", torch.arange(n) + 1000)


def data_for(model, n=40):
    """Images with the labels that the model gives, one in four made wrong."""
    data = make_images(n)
    data.labels = model(data.images / 255).argmax(dim=1)
    data.labels[::4] = (data.labels[::4] + 1) % 10
    return data


def info(epoch=3, **changes):
    return CheckpointInfo(OPTIONS | changes, "made", tuple("0123456789"), "linf", 0.05, epoch)
