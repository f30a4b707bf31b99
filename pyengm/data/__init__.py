"""Pictures and labels, their splits, and augmented batches that depend on (seed, epoch, picture) alone."""

from pyengm.data.augment import CropFlip
from pyengm.data.batches import AUGMENTATIONS, Batch, Batches, to_float
from pyengm.data.images import ImageData
from pyengm.data.mirror import AUGMENT
from pyengm.data.resized_crop import ResizedCrop, margin_for
from pyengm.data.sources import DATASETS, load
from pyengm.data.split import split_validation
from pyengm.data.transform import Transform

__all__ = [
    "AUGMENT",
    "AUGMENTATIONS",
    "DATASETS",
    "Batch",
    "Batches",
    "CropFlip",
    "ImageData",
    "ResizedCrop",
    "Transform",
    "load",
    "margin_for",
    "split_validation",
    "to_float",
]
