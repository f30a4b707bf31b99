"""Data sets by functions of the user, as in "my_module:make_datasets"."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError
from pyengm.utils.import_object import call_object, import_object

OPTION = "--data"
EXPECTED = "two of ImageDataset, (images, labels) or a torch Dataset of pairs: the training and the test images"


def load_from_user(
    spec: str, root: Path, *, download: bool = False, image_size: int | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Loads the training and the test images that a function of the user returns.

    Each of them is an `ImageDataset`, or (images, labels) as for `ImageDataset.from_arrays`, or a map-style data set of
    torch whose items are such an image and its label.

    Args:
        spec: MODULE:FUNCTION. The function gets those of the following arguments that it has.
        root: the folder in which data sets are kept.
        download: whether missing data may be downloaded.
        image_size: height and width in pixels, where they are given.

    Returns:
        The training and the test images, with the same classes.

    Raises:
        ConfigError: the function cannot be imported or called.
        DataError: it returns something else, or images and labels do not fit.
    """
    offered = {"root": root, "download": download, "image_size": image_size}
    found = call_object(import_object(spec, OPTION), spec, OPTION, offered)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise DataError(f"{OPTION}: {spec} returned {_kind(found)}; expected {EXPECTED}")
    made = [_dataset(part, spec, split) for part, split in zip(found, ("train", "test"), strict=True)]
    classes = max((data.classes for data in made), key=len)
    train, test = (ImageDataset(one.images, one.labels, classes, spec, one.split, one.index) for one in made)
    return train, test


def _dataset(found: Any, spec: str, split: str) -> ImageDataset:
    if isinstance(found, ImageDataset):
        return ImageDataset(found.images, found.labels, found.classes, spec, split, found.index)
    if isinstance(found, (tuple, list)) and len(found) == 2:
        images, labels = found
        if isinstance(images, (Tensor, np.ndarray)):
            return ImageDataset.from_arrays(images, labels, name=spec, split=split)
    elif hasattr(found, "__getitem__") and hasattr(found, "__len__"):
        pairs = [found[i] for i in range(len(found))]
        if pairs and all(isinstance(pair, (tuple, list)) and isinstance(pair[0], Tensor) for pair in pairs):
            images = torch.stack([pair[0] for pair in pairs])
            return ImageDataset.from_arrays(images, [int(pair[1]) for pair in pairs], name=spec, split=split)
    raise DataError(f"{OPTION}: {spec} returned {_kind(found)} as the {split} images; expected {EXPECTED}")


def _kind(found: object) -> str:
    return f"{type(found).__name__} of {len(found)}" if isinstance(found, (tuple, list)) else type(found).__name__
