"""Images to evaluate from anywhere: names, tensors, and the data sets and loaders of torch."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyengm.data.image_dataset import ImageDataset
from pyengm.data.loader import to_float
from pyengm.data.registry import load
from pyengm.errors import DataError

ROUNDING = 2**-18  # see `pyengm.attacks.validation`
EXPECTED = (
    "the name of a data set, a folder, (images, labels), a DataLoader, a torch Dataset or a pyengm.data.ImageDataset"
)


def as_dataset(
    data: Any,
    *,
    num_classes: int | None = None,
    root: str | os.PathLike | None = None,
    image_size: int | None = None,
) -> ImageDataset:
    """The test images that something holds.

    Images in floating point are used as they are: as uint8 where all of their values are multiples of 1/255, as those
    of torchvision's ToTensor are, and otherwise as float32.

    Args:
        data: an `ImageDataset`; the name of a data set or a folder, as for `load`; (images, labels): images
            (N, C, H, W) in uint8, or in floating point with values in [0, 1], and labels (N,) of integers, tensors or
            arrays; a DataLoader of torch that yields (images, labels, ...), which is read once; or a data set of torch
            whose items are (image, label, ...).
        num_classes: the number of classes of images without names of classes; None for the largest label plus 1.
        root: as for `load`.
        image_size: as for `load`.

    Raises:
        DataError: data of other kinds, shapes, types or values.

    Example:
        >>> data = pyengm.data.as_dataset((torch.rand(10, 3, 4, 4), torch.arange(10)))
        >>> len(data), data.num_classes
        (10, 10)
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, (str, Path)):
        return load(data, "test", root=root, image_size=image_size)
    if image_size is not None:
        raise DataError("image_size resizes the images of folders only; resize these before")
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return _from_batches([data], (), num_classes)
    if isinstance(data, DataLoader):
        return _from_batches(data, getattr(data.dataset, "classes", ()), num_classes)
    if isinstance(data, Dataset):
        loader = DataLoader(data, batch_size=256, collate_fn=_collate)
        return _from_batches(loader, getattr(data, "classes", ()), num_classes)
    raise DataError(f"expected {EXPECTED}, got {type(data).__name__}")


def _from_batches(batches: Iterable[Any], classes: Any, num_classes: int | None) -> ImageDataset:
    images, labels = [], []
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(f"expected (images, labels) from the data, got {_kind(batch)}")
        images.append(_exact(_pixels(batch[0])))
        labels.append(torch.as_tensor(batch[1]).detach().cpu().reshape(-1))
    if not images:
        raise DataError("the data hold no images")
    if any(part.is_floating_point() for part in images):
        images = [part if part.is_floating_point() else to_float(part) for part in images]
    if len({part.shape[1:] for part in images}) > 1:
        shapes = sorted({tuple(part.shape[1:]) for part in images})
        raise DataError(f"expected images of one size, got {shapes[0]} and {shapes[1]}: resize them before")
    whole = torch.cat(labels)
    names = tuple(map(str, classes)) if classes else ()
    highest = int(whole.max()) if whole.numel() and not whole.is_floating_point() else -1
    count = max(num_classes or 0, highest + 1)
    if len(names) < count:
        names = tuple(map(str, range(count)))
    return ImageDataset(torch.cat(images), whole, names, "arrays", "test")


def _pixels(images: Any) -> Tensor:
    """Images of a batch as a tensor on the CPU; those off by a rounding error are clipped."""
    if not isinstance(images, (Tensor, np.ndarray)):
        raise DataError(f"expected images as tensors, got {_kind(images)}; give the data set transform=ToTensor()")
    pixels = torch.as_tensor(images).detach().cpu()
    if pixels.dim() != 4:
        raise DataError(f"expected images of shape (N, C, H, W), got {tuple(pixels.shape)}")
    if not pixels.is_floating_point() or not pixels.numel():
        return pixels
    pixels = pixels.float()
    low, high = (value.item() for value in pixels.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise DataError(
            f"expected images with values in [0, 1], got values from {low:.4g} to {high:.4g}: leave out Normalize, "
            "which belongs into the model (mean=, std=), or divide by 255"
        )
    if low < 0 or high > 1:
        warnings.warn("images outside [0, 1] by a rounding error are clipped to [0, 1]", stacklevel=2)
    return pixels.clamp(0, 1)


def _exact(pixels: Tensor) -> Tensor:
    """Floats that are multiples of 1/255 as uint8, other values as they are."""
    if not pixels.is_floating_point():
        return pixels
    rounded = (pixels * 255).round().to(torch.uint8)
    return rounded if to_float(rounded).equal(pixels) else pixels


def _collate(items: list[Any]) -> tuple[Tensor, Tensor]:
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[0], (Tensor, np.ndarray)):
            raise DataError(
                f"expected (image, label) from the data set, the image a tensor, got {_kind(item)}; give it "
                "transform=ToTensor()"
            )
    shapes = {tuple(item[0].shape) for item in items}
    if len(shapes) > 1:
        raise DataError(f"expected images of one size, got {' and '.join(map(str, sorted(shapes)[:2]))}: resize them")
    images = torch.stack([torch.as_tensor(item[0]) for item in items])
    return images, torch.tensor([int(item[1]) for item in items])


def _kind(found: Any) -> str:
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {', '.join(type(part).__name__ for part in found)}"
    return type(found).__name__
