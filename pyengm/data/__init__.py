"""Pictures and labels, their splits, and augmented batches that depend on (seed, epoch, picture) alone."""

from pyengm.data.augment import AUGMENT, CropFlip
from pyengm.data.batches import Batch, Batches, to_float
from pyengm.data.images import ImageData
from pyengm.data.sources import DATASETS, load
from pyengm.data.split import split_validation

__all__ = ["AUGMENT", "DATASETS", "Batch", "Batches", "CropFlip", "ImageData", "load", "split_validation", "to_float"]
