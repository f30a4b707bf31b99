"""Images and labels, their splits, and augmented batches that depend on the seed, the epoch and each image alone."""

from pyengm.data.crop_flip import CropFlip
from pyengm.data.flip import FLIP_ALLOWED
from pyengm.data.image_dataset import ImageDataset
from pyengm.data.loader import AUGMENTATIONS, Batch, Loader, to_float
from pyengm.data.registry import DATASETS, load
from pyengm.data.resized_crop import ResizedCrop, margin_for
from pyengm.data.sources import as_dataset
from pyengm.data.split import split_validation
from pyengm.data.transform import Transform

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "FLIP_ALLOWED",
    "Batch",
    "CropFlip",
    "ImageDataset",
    "Loader",
    "ResizedCrop",
    "Transform",
    "as_dataset",
    "load",
    "margin_for",
    "split_validation",
    "to_float",
]
