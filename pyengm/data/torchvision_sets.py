"""The downloadable data sets, read through torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError

SETS: dict[str, Callable[..., Any]] = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "svhn": datasets.SVHN,
    "mnist": datasets.MNIST,
    "fashionmnist": datasets.FashionMNIST,
}


def load_torchvision(name: str, split: str, root: Path, download: bool) -> ImageDataset:
    """Loads a whole split into one tensor in memory.

    Args:
        name: one of `SETS`.
        split: "train" or "test".
        root: the folder of the files.
        download: download missing files.

    Raises:
        DataError: the files are missing or damaged.
    """
    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        source = SETS[name](root=str(root), download=download, **which)
    except (RuntimeError, OSError) as error:  # an unreachable server is an OSError
        advice = (
            "check the network, or copy the files there by hand"
            if download
            else "download it (download=True, or --download), or name the folder that holds it (root=, or PYENGM_DATA)"
        )
        raise DataError(f"{name}: no intact copy in {root}: {advice}. torchvision says: {error}") from error
    images = torch.as_tensor(source.data)
    if images.ndim == 3:  # MNIST and its like: (N, H, W)
        images = images.unsqueeze(1)
    elif name != "svhn":  # CIFAR: (N, H, W, C)
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.labels if name == "svhn" else source.targets)
    classes = tuple("0123456789") if name == "svhn" else tuple(source.classes)
    return ImageDataset(images, labels, classes, name, split)
