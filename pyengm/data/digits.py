"""The embedded data set: 1,797 hand-written digits of 8x8 pixels that come with scikit-learn."""

from typing import Any

import torch

from pyengm.data.image_dataset import ImageDataset
from pyengm.data.order import random_permutation
from pyengm.ops import Purpose

TRAIN_SIZE = 1437  # of 1,797: the set has no split of its own, so this one is fixed for good


def load_digits(split: str) -> ImageDataset:
    """Loads the digits.

    Args:
        split: "train" (1,437 images) or "test" (360).

    Returns:
        Images (n, 1, 8, 8) uint8; 0 to 16 in the source becomes 0 to 255.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # here: it takes a second, and an OpenMP of its own

    source: Any = sklearn_digits()
    images = torch.from_numpy(source.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(source.target)
    order = random_permutation(torch.arange(len(images)), seed=0, purpose=Purpose.SPLIT)
    chosen = (order[:TRAIN_SIZE] if split == "train" else order[TRAIN_SIZE:]).sort().values
    return ImageDataset(images[chosen], labels[chosen], tuple("0123456789"), "digits", split)
