"""The validation split: held-out training images, the same for every training seed."""

from pyengm.data.image_dataset import ImageDataset
from pyengm.data.order import shuffled
from pyengm.errors import DataError
from pyengm.ops import Purpose


def split_validation(data: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """Hold out 1,000 images of `data`, or a tenth of a set of fewer than 10,000; returns (train, val).

    The choice depends on the images' `index` alone, and both parts keep the order of `data`.
    Raises DataError for fewer than 10 images.
    """
    if len(data) < 10:
        raise DataError(f"a validation split needs 10 images or more, {data.name} has {len(data)}: go without one")
    held_out = min(1000, len(data) // 10)
    order = shuffled(data.index, seed=0, purpose=Purpose.SPLIT)
    train = data.subset(order[held_out:].sort().values, split="train")
    return train, data.subset(order[:held_out].sort().values, split="val")
