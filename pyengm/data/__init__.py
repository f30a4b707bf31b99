"""Images and labels, their splits, and augmented batches that depend on (seed, epoch, image) alone."""

from pyengm.data.augment import CropFlip
from pyengm.data.flip import AUGMENT
from pyengm.data.image_dataset import ImageDataset
from pyengm.data.loader import AUGMENTATIONS, Batch, Loader, to_float
from pyengm.data.registry import DATASETS, load
from pyengm.data.resized_crop import ResizedCrop, margin_for
from pyengm.data.split import split_validation
from pyengm.data.transform import Transform

__all__ = [
    "AUGMENT",
    "AUGMENTATIONS",
    "DATASETS",
    "Batch",
    "CropFlip",
    "ImageDataset",
    "Loader",
    "ResizedCrop",
    "Transform",
    "load",
    "margin_for",
    "split_validation",
    "to_float",
]
