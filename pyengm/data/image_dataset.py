"""A set of labelled images, and the identity that each of them keeps through every subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyengm.data.memmap import MemmapImages
from pyengm.errors import DataError


@dataclass(eq=False)
class ImageDataset:
    """Labelled uint8 images of one size.

    images: (N, C, H, W) uint8, a tensor in host memory or a numpy memmap (kept on disk as `MemmapImages`).
    labels: (N,) integers in [0, num_classes); kept as int64.
    classes: the names of the classes; name, split: where the images come from.
    index: (N,) int64, each image's position in the full split: the key of its random numbers.
    Raises DataError where these do not fit together.
    """

    images: Tensor | MemmapImages = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    name: str
    split: str
    index: Tensor | None = field(default=None, repr=False)

    def __post_init__(self):
        if isinstance(self.images, np.ndarray):
            mapped = isinstance(self.images, np.memmap)
            self.images = MemmapImages(self.images) if mapped else torch.from_numpy(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or 0 in self.images.shape:
            raise DataError(
                f"{self.name}: expected uint8 images of shape (N, C, H, W), none of them 0, got {self.images.dtype}"
                f" {tuple(self.images.shape)}; floats in [0, 1] go through ImageDataset.from_arrays"
            )
        if isinstance(self.images, Tensor):
            self.images = self.images.contiguous()  # SVHN's file holds the images last
        self.classes = tuple(self.classes)
        self.labels = _integers(self.labels, f"{self.name}: labels")
        if self.labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: expected one label for each of {len(self.images)} images,"
                f" got labels of shape {tuple(self.labels.shape)}"
            )
        low, high = self.labels.min().item(), self.labels.max().item()
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"{self.name}: expected labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes),"
                f" got {low} to {high}"
            )
        if self.index is None:
            self.index = torch.arange(len(self.images))
        self.index = _integers(self.index, f"{self.name}: index")
        if self.index.shape != self.labels.shape:
            raise DataError(
                f"{self.name}: index has shape {tuple(self.index.shape)}, labels {tuple(self.labels.shape)}"
            )

    @classmethod
    def from_arrays(
        cls, images, labels, classes: Sequence[str] | None = None, name: str = "arrays", split: str = "train"
    ) -> ImageDataset:
        """Images (N, C, H, W), uint8 or floats in [0, 1] (rounded to 8 bits), and labels (N,), both array-like.

        Without `classes` there are max(labels) + 1 of them, named by number.
        Raises DataError for NaN, values outside [0, 1], other dtypes and shapes, bad labels, and empty sets.
        """
        images = images if isinstance(images, np.memmap) else torch.as_tensor(images).detach().cpu()
        if images.ndim == 4 and images.shape[1] > 4 and images.shape[3] in (1, 3):
            raise DataError(f"{name}: {tuple(images.shape)} looks like (N, H, W, C): permute it to (N, C, H, W)")
        if isinstance(images, Tensor) and images.is_floating_point():
            images = _to_uint8(images, name)
        labels = _integers(labels, f"{name}: labels")
        if classes is None:
            classes = [str(number) for number in range(max(labels.tolist(), default=0) + 1)]
        return cls(images, labels, tuple(classes), name, split)

    def subset(self, indices, *, split: str | None = None) -> ImageDataset:
        """The images at positions `indices` (sequence, array or tensor, (n,)), in that order, index kept.

        Raises DataError for positions outside [0, N), duplicates, and an empty or non-integer list.
        """
        positions = _integers(indices, "indices")
        if positions.ndim != 1 or len(positions) == 0:
            raise DataError(f"indices: expected a non-empty list of positions, got shape {tuple(positions.shape)}")
        low, high = positions.min().item(), positions.max().item()
        if low < 0 or high >= len(self):
            raise DataError(f"indices: expected positions from 0 to {len(self) - 1}, got {low} to {high}")
        values, counts = positions.unique(return_counts=True)
        if len(values) < len(positions):
            raise DataError(f"indices: position {values[counts.argmax()].item()} comes more than once: list it once")
        images = self.images.rows(positions) if isinstance(self.images, MemmapImages) else self.images[positions]
        split = self.split if split is None else split
        return ImageDataset(images, self.labels[positions], self.classes, self.name, split, self.index[positions])

    def centre(self, size: int) -> ImageDataset:
        """The squares of `size` pixels in the middle of the images, in memory unless they are the whole images.

        Raises DataError where the images are smaller.
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
        return tuple(self.images.shape[1:])

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def image_size(self) -> int:
        """The height; the width is shape[2]."""
        return self.shape[1]


def _integers(values, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: expected whole numbers, got {type(values).__name__}: {error}") from error
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise DataError(f"{what}: expected whole numbers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def _to_uint8(images: Tensor, name: str) -> Tensor:
    if not images.isfinite().all():
        raise DataError(f"{name}: {int((~images.isfinite()).sum())} pixel values are NaN or infinite: remove them")
    if images.numel() and (images.min() < 0 or images.max() > 1):
        low, high = images.min().item(), images.max().item()
        raise DataError(f"{name}: expected float pixels in [0, 1], found {low} to {high}: divide by 255? clamp?")
    return images.float().mul(255).round().to(torch.uint8)
