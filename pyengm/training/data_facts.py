"""Which images a run has, in words and digests that tell two data sets apart."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyengm.data import ImageDataset
from pyengm.errors import ConfigError

DECIDING = ("images", "shape", "classes", "labels", "pixels")


def describe_images(data: ImageDataset) -> dict[str, Any]:
    """Describes images for JSON.

    Args:
        data: The images of one use, such as those to train on.

    Returns:
        Their name, split, number, shape (channels, height, width) and number of classes; "labels", the SHA-256 of the
        labels with their positions in the split; and "pixels", that of the images where they are in memory, else None.
    """
    labels = hashlib.sha256(data.index.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()
    images = data.images
    pixels = hashlib.sha256(images.contiguous().numpy().data).hexdigest() if isinstance(images, Tensor) else None
    return {
        "name": data.name,
        "split": data.split,
        "images": len(data),
        "shape": list(data.shape),
        "classes": data.num_classes,
        "labels": labels,
        "pixels": pixels,
    }


def check_same_images(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that a run resumes with the images that it began with.

    Args:
        before: What `describe_images` returned when it began, by use.
        now: The same of the images that it has now.

    Raises:
        ConfigError: Images of a use differ.
    """
    for use in before.keys() & now.keys():
        differing = [
            key
            for key in DECIDING
            if None not in (values := (before[use].get(key), now[use][key])) and values[0] != values[1]
        ]
        if differing:
            raise ConfigError(
                f"the images of the run have changed ({use} images: other {', '.join(differing)}): restore those that "
                "it began with, or begin a new run"
            )
