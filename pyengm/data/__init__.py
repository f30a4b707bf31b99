"""Images and labels, their splits, and augmented batches that depend on the seed, the epoch and each image alone."""

from pyengm.data.crop_flip import CropFlip
from pyengm.data.extra import load_extra
from pyengm.data.flip import FLIP_ALLOWED
from pyengm.data.from_user import load_from_user
from pyengm.data.image_dataset import ImageDataset
from pyengm.data.loader import AUGMENTATIONS, Batch, Loader, to_float
from pyengm.data.registry import DATASETS, data_name, data_root, load, user_data
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
    "data_name",
    "data_root",
    "load",
    "load_extra",
    "load_from_user",
    "margin_for",
    "split_validation",
    "to_float",
    "user_data",
]
