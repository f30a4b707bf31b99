"""A set of labelled images, each with an index that it keeps through every subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyengm.data.memmap import MemmapImages
from pyengm.errors import DataError

Indices = Sequence[int] | np.ndarray | Tensor


@dataclass(eq=False, init=False)
class ImageDataset:
    """Labelled images of one size.

    Args:
        images: (N, C, H, W) uint8, in host memory or a numpy memmap (kept on disk as `MemmapImages`); or float32 in
            [0, 1], in host memory, which are used as they are, without augmentation.
        labels: (N,) integers in [0, num_classes); kept as int64.
        classes: the names of the classes.
        name: the data set that the images come from.
        split: the split of it.
        index: (N,) int64, each image's position in the full split, which is the key of its random values; None for
            0, ..., N - 1.

    Raises:
        DataError: shapes, types or values do not fit.
    """

    images: Tensor | MemmapImages = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    name: str
    split: str
    index: Tensor = field(repr=False)

    def __init__(
        self,
        images: Tensor | MemmapImages | np.ndarray,
        labels: Indices,
        classes: Sequence[str],
        name: str,
        split: str,
        index: Indices | None = None,
    ) -> None:
        self.classes, self.name, self.split = tuple(classes), name, split
        self.images = _check_images(images, name)
        self.labels = _integers(labels, f"{name}: labels")
        if self.labels.shape != (len(self.images),):
            raise DataError(
                f"{name}: expected one label for each of {len(self.images)} images,"
                f" got labels of shape {tuple(self.labels.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"{name}: expected labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes),"
                f" got {low} to {high}"
            )
        self.index = _integers(torch.arange(len(self.images)) if index is None else index, f"{name}: index")
        if self.index.shape != self.labels.shape:
            raise DataError(f"{name}: index has shape {tuple(self.index.shape)}, labels {tuple(self.labels.shape)}")

    @classmethod
    def from_arrays(
        cls,
        images: Tensor | np.ndarray,
        labels: Indices,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
        split: str = "train",
    ) -> ImageDataset:
        """Makes a data set from arrays.

        Args:
            images: (N, C, H, W) array-like, uint8 or floats in [0, 1] (rounded to 8 bits).
            labels: (N,) integers, array-like.
            classes: the names of the classes; None for max(labels) + 1 classes that are named by number.
            name: of the data set.
            split: of the data set.

        Raises:
            DataError: images are NaN, outside [0, 1], or of another type or shape, or labels are not integers, or the
                set is empty.
        """
        images = images if isinstance(images, np.memmap) else torch.as_tensor(images).detach().cpu()
        if images.ndim == 4 and images.shape[1] > 4 and images.shape[3] in (1, 3):
            raise DataError(f"{name}: {tuple(images.shape)} looks like (N, H, W, C): permute it to (N, C, H, W)")
        if isinstance(images, Tensor) and images.is_floating_point():
            images = _to_uint8(images, name)
        labels = _integers(labels, f"{name}: labels")
        if classes is None:
            classes = [str(number) for number in range(max(labels.tolist(), default=0) + 1)]
        return cls(images, labels, classes, name, split)

    def subset(self, indices: Indices, *, split: str | None = None) -> ImageDataset:
        """Selects images, which keep their `index`.

        Args:
            indices: (n,) positions in this data set, in the order of the result.
            split: the name of the result's split; None for this one's.

        Raises:
            DataError: positions are outside [0, N), appear twice, are not integers, or there are none.
        """
        positions = _integers(indices, "indices")
        if positions.ndim != 1 or len(positions) == 0:
            raise DataError(f"indices: expected a non-empty list of positions, got shape {tuple(positions.shape)}")
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= len(self):
            raise DataError(f"indices: expected positions from 0 to {len(self) - 1}, got {low} to {high}")
        values, counts = positions.unique(return_counts=True)
        if len(values) < len(positions):
            raise DataError(f"indices: position {int(values[counts.argmax()])} comes more than once: list it once")
        images = self.images.subset(positions) if isinstance(self.images, MemmapImages) else self.images[positions]
        split = self.split if split is None else split
        return ImageDataset(images, self.labels[positions], self.classes, self.name, split, self.index[positions])

    def center_crop(self, size: int) -> ImageDataset:
        """Crops the middle of all images, which are in memory then unless the crops are the whole images.

        Args:
            size: the side of the square crops in pixels.

        Raises:
            DataError: the images are smaller.
        """
        height, width = self.shape[1:]
        if height == width == size:
            return self
        if not 1 <= size <= min(height, width):
            raise DataError(f"{self.name}: expected a size of 1 to {min(height, width)} pixels, got {size}")
        top, left = (height - size) // 2, (width - size) // 2
        images = self.images[:][..., top : top + size, left : left + size]
        return ImageDataset(images, self.labels, self.classes, self.name, self.split, self.index)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def image_size(self) -> int:
        """The height; the width is shape[2]."""
        return self.shape[1]


def _check_images(images: Tensor | MemmapImages | np.ndarray, name: str) -> Tensor | MemmapImages:
    if isinstance(images, np.ndarray):
        images = MemmapImages(images) if isinstance(images, np.memmap) else torch.from_numpy(images)
    floats = images if isinstance(images, Tensor) and images.dtype == torch.float32 else None
    if (floats is None and images.dtype != torch.uint8) or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{name}: expected uint8 images (or float32 in [0, 1]) of shape (N, C, H, W), none of them 0, got"
            f" {images.dtype} {tuple(images.shape)}; ImageDataset.from_arrays rounds other floats to 8 bits"
        )
    if floats is not None:
        _check_pixels(floats, name)
    return images.contiguous() if isinstance(images, Tensor) else images  # SVHN's file holds the images last


def _integers(values: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: expected whole numbers, got {type(values).__name__}: {error}") from error
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise DataError(f"{what}: expected whole numbers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def _to_uint8(images: Tensor, name: str) -> Tensor:
    _check_pixels(images, name)
    return images.float().mul(255).round().to(torch.uint8)


def _check_pixels(images: Tensor, name: str) -> None:
    if not images.isfinite().all():
        raise DataError(f"{name}: {int((~images.isfinite()).sum())} pixel values are NaN or infinite: remove them")
    if images.numel() and (images.min() < 0 or images.max() > 1):
        low, high = images.min().item(), images.max().item()
        raise DataError(f"{name}: expected float pixels in [0, 1], found {low} to {high}: divide by 255? clamp?")
