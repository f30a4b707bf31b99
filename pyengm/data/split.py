"""The validation split: held-out training images, the same for every training seed."""

from pyengm.data.image_dataset import ImageDataset
from pyengm.data.order import random_permutation
from pyengm.errors import DataError
from pyengm.ops import Purpose


def split_validation(data: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """Holds out 1,000 images of a data set, or a tenth of a set of fewer than 10,000.

    The choice depends on the images' `index` alone, and both splits keep the order of `data`.

    Args:
        data: 10 images or more.

    Returns:
        The training split and the validation split.

    Raises:
        DataError: there are fewer than 10 images.
    """
    if len(data) < 10:
        raise DataError(
            f"{data.name} has {len(data)} images, a validation split needs 10: train without one (--select-on none)"
        )
    held_out = min(1000, len(data) // 10)
    order = random_permutation(data.index, seed=0, purpose=Purpose.SPLIT)
    train = data.subset(order[held_out:].sort().values, split="train")
    return train, data.subset(order[:held_out].sort().values, split="val")
