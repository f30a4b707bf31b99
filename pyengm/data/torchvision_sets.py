"""The downloadable data sets, read through torchvision."""

from pathlib import Path

import torch
from torchvision import datasets

from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError

SETS = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "svhn": datasets.SVHN,
    "mnist": datasets.MNIST,
    "fashionmnist": datasets.FashionMNIST,
}


def load_torchvision(name: str, split: str, root: Path, download: bool) -> ImageDataset:
    """The whole split as one tensor in memory; DataError where the files are missing or damaged."""
    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        source = SETS[name](root=str(root), download=download, **which)
    except (RuntimeError, OSError) as error:  # an unreachable server is an OSError
        hint = (
            "check the network, or copy the files there by hand"
            if download
            else "download it (download=True, or --download), or name the folder that holds it (root=, or PYENGM_DATA)"
        )
        raise DataError(f"{name}: no intact copy in {root}: {hint}. torchvision says: {error}") from error
    images = torch.as_tensor(source.data)
    if images.ndim == 3:  # MNIST and its like: (N, H, W)
        images = images.unsqueeze(1)
    elif name != "svhn":  # CIFAR: (N, H, W, C)
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.labels if name == "svhn" else source.targets)
    classes = tuple("0123456789") if name == "svhn" else tuple(source.classes)
    return ImageDataset(images, labels, classes, name, split)
