"""Which images a run has, in words and digests that tell two data sets apart."""

import hashlib
from typing import Any

from torch import Tensor

from pyengm.data import ImageDataset


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
