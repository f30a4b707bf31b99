"""The downloadable data sets, read through torchvision."""

from pathlib import Path

import torch

from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError

SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "mnist": "MNIST", "fashionmnist": "FashionMNIST"}
"""The names of the classes in torchvision.datasets."""


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
    from torchvision import datasets  # here: it takes a second

    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        source = getattr(datasets, SETS[name])(root=str(root), download=download, **which)
    except (RuntimeError, OSError) as error:  # an unreachable server is an OSError
        advice = f"check the network, or copy the files there by hand ({error})"
        if not download:
            advice = "download it (--download), or name the folder that holds it (--data-dir, or PYENGM_DATA)"
        raise DataError(f"{name}: no intact copy in {root}: {advice}") from error
    images = torch.as_tensor(source.data)
    if images.ndim == 3:  # MNIST and its like: (N, H, W)
        images = images.unsqueeze(1)
    elif name != "svhn":  # CIFAR: (N, H, W, C)
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.labels if name == "svhn" else source.targets)
    classes = tuple("0123456789") if name == "svhn" else tuple(source.classes)
    return ImageDataset(images, labels, classes, name, split)
