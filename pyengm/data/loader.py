"""Shuffled and augmented batches on the compute device, which depend on the seed, the epoch and each image alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.data.crop_flip import CropFlip
from pyengm.data.cut import cutmix, cutout
from pyengm.data.extra import BatchMixture, with_extra
from pyengm.data.flip import may_flip
from pyengm.data.host_transfer import HostTransfer
from pyengm.data.image_dataset import ImageDataset
from pyengm.data.memmap import MemmapImages
from pyengm.data.order import random_permutation
from pyengm.data.prefetch import prefetch
from pyengm.data.resized_crop import ResizedCrop
from pyengm.data.transform import Transform
from pyengm.errors import ConfigError, DataError
from pyengm.ops import Purpose

AUGMENTATIONS = ("none", "shift", "resized")
# Threads that transfer batches from the host. Images of 256 x 256 from a cold virtual disk: 1,600 a second with one,
# 1,900 with two, 2,000 with four; from memory one thread is as good.
READERS = 4


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of a batch, or the share of one process in it.

    Args:
        x: (n, C, H, W) float32 in [0, 1].
        y: (n,) int64, the labels, or with CutMix (n, k) float32, the probabilities of the classes.
        index: (n,) int64, the indices of the images in their data set.
        transform: the augmentation of x; None for none.
        size: the number of images in the whole batch, over all processes.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    transform: Transform | None
    size: int


class Loader:
    """Iterates over the batches of a data set, epoch by epoch, on the compute device.

    The last batch of an epoch may be short. With several processes every batch is cut into as many runs of images,
    whose sizes differ by at most one, and each process gets one; a last batch of fewer than two images for each process
    gets half of the one before it.

    Args:
        data: the data set.
        batch_size: images per batch, over all processes.
        device: where batches are made.
        seed: of order and augmentation.
        augment: "none"; "shift" by up to an eighth of the image; or "resized" crops of 8 to 100 % of its area. The
            latter two also flip where `FLIP_ALLOWED` has it.
        shuffle: a new order in each epoch; False for the order of the data.
        crop: (H, W) of resized crops; None for that of the data. Smaller ones leave more pixels to choose from.
        resident: keep the whole set on the device (True), or let threads fetch batches from the host (False); both give
            the same batches. None keeps it on CUDA if it takes less than half of the free memory, elsewhere if it is in
            memory.
        memory_format: of the images of a batch, contiguous or channels_last.
        resolutions: height and width in pixels of the images of a batch by the epoch from which they hold; images are
            shrunk to them after all augmentation, and keep their size in epochs before the first.
        cutout: side in pixels of a square that is erased from every image; None for none.
        cutmix: probability that a box of an image shows the image before it in the whole batch, which the first finds
            last; labels are then probabilities.
        extra: further images, of which every batch has a share; see `BatchMixture`. Their indices follow the others'.
        extra_fraction: that share, rounded to whole images.
        rank: of this process.
        world_size: the number of processes.

    Raises:
        ConfigError: the batch size is below 1, the augmentation is unknown, there is a crop without resized crops, rank
            is out of range, the square of cutout or a resolution is larger than the images, a process would get fewer
            than four images of a batch, or a batch would have no image of a kind, or more than there are.
        DataError: `ResizedCrop.draw` does not make such crops of these images, images in floating point would be
            augmented, or the extra images have another shape or other classes.
    """

    def __init__(
        self,
        data: ImageDataset,
        batch_size: int,
        *,
        device: torch.device | str,
        seed: int,
        augment: str,
        shuffle: bool,
        crop: tuple[int, int] | None = None,
        resident: bool | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        resolutions: Mapping[int, int] | None = None,
        cutout: int | None = None,
        cutmix: float = 0.0,
        extra: ImageDataset | None = None,
        extra_fraction: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected a batch size of 1 or more, got {batch_size}")
        if augment not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {augment!r}; known: {', '.join(AUGMENTATIONS)}")
        if augment != "none" and data.images.dtype != torch.uint8:
            raise DataError(f"{data.name}: augmentation is for uint8 images, these are {data.images.dtype}")
        if crop is not None and augment != "resized":
            raise ConfigError(f"expected no crop with augmentation {augment!r}, got {crop}: it is for resized")
        if not 0 <= rank < world_size:
            raise ConfigError(f"expected a rank from 0 to world_size - 1, got rank {rank} of {world_size}")
        if world_size > 1 and min(batch_size, len(data)) < 4 * world_size:
            raise ConfigError(
                f"expected 4 images of every batch for each of {world_size} processes, got batches of {batch_size} "
                f"from {len(data)} images: use fewer processes or larger batches"
            )
        self.own = data
        if extra is not None:
            data = with_extra(data, extra)
        self.mixture = None if extra is None else _mixture(data, len(self.own), batch_size, extra_fraction, seed)
        self.data, self.batch_size, self.device = data, batch_size, torch.device(device)
        self.seed, self.augment, self.shuffle = seed, augment, shuffle
        self.memory_format, self.cutout, self.cutmix = memory_format, cutout, cutmix
        self.rank, self.world_size = rank, world_size
        self.resident = _fits(data, self.device) if resident is None else resident
        self._device_images = _move(data.images, self.device) if self.resident else None
        self._labels = data.labels.to(self.device)
        self._index = data.index.to(self.device)
        self.shape = (data.channels, *(crop or data.shape[1:]))  # (C, H, W) of the images of a batch
        self.resolutions = dict(resolutions or {})
        _check_sizes(self.shape, self.cutout, self.resolutions)
        self._draw(self._index[:0], epoch=0)  # raises the errors of a crop that does not fit

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    @property
    def padding(self) -> int:
        """By how many pixels the canvas, of which augmentation shows a window, is larger than that, on each side."""
        if self.augment == "shift":
            return min(self.data.shape[1:]) // 8
        return (self.data.shape[1] - self.shape[1]) // 2

    def epoch(self, epoch: int, start: int = 0, *, mix: bool = True) -> Iterator[Batch]:
        """Iterates over the batches of an epoch.

        Args:
            epoch: the number of the epoch.
            start: the first batch.
            mix: False for whole images with their labels, without CutMix.

        Raises:
            ConfigError: start is outside [0, len(self)].
        """
        if not 0 <= start <= len(self):
            raise ConfigError(f"expected a first batch from 0 to {len(self)}, got {start}: was the batch size changed?")
        return self._epoch(epoch, start, mix=mix and self.cutmix > 0)

    def order(self, epoch: int) -> Tensor:
        """The positions int64 on the CPU of the images of an epoch, in its order: (N,), all, without extra images."""
        if self.mixture is not None:
            return self.mixture.order(epoch)
        if not self.shuffle:
            return torch.arange(len(self.data))
        return random_permutation(self.data.index, seed=self.seed, purpose=Purpose.SHUFFLE, epoch=epoch)

    def local_index(self, epoch: int) -> Tensor:
        """The indices (n,) int64 of the images that this process gets in an epoch, in the order of the data.

        With extra images they are those that it may get in any epoch: all, as every epoch has others.
        """
        if self.mixture is not None:
            return self.data.index
        return self.data.index[torch.cat(self._local_batches(self.order(epoch), 0)).sort().values]

    def _epoch(self, epoch: int, start: int, *, mix: bool) -> Iterator[Batch]:
        order = self.order(epoch)
        sizes = [len(batch) for batch in self._batches(order)[start:]]
        local = self._shown(order.to(self.device), start, mix=mix)
        if self._device_images is not None:
            for positions, size in zip(local, sizes, strict=True):
                yield self._batch(self._device_images, positions, positions, epoch, size, mix=mix)
            return
        largest = -(-self.batch_size // self.world_size) * (2 if mix else 1)
        transfer = HostTransfer(self.data.images, self.device, max_images=largest)
        host_batches = self._shown(order, start, mix=mix)
        with closing(prefetch(transfer, host_batches, ahead=READERS, threads=READERS)) as transferred:
            for (images, where), positions, size in zip(transferred, local, sizes, strict=True):
                if images.is_cuda:  # they come from another stream: their memory is not free before this one is done
                    images.record_stream(torch.cuda.current_stream(self.device))
                    where.record_stream(torch.cuda.current_stream(self.device))
                yield self._batch(images, where, positions, epoch, size, mix=mix)

    def _shown(self, order: Tensor, start: int, *, mix: bool) -> list[Tensor]:
        """The positions that the batches of this process show; with mix those of the other images follow."""
        own = self._local_batches(order, start)
        if not mix:
            return own
        others = torch.cat([batch.roll(1) for batch in order.split(self.batch_size)])
        return [torch.cat(pair) for pair in zip(own, self._local_batches(others, start), strict=True)]

    def _local_batches(self, order: Tensor, start: int) -> list[Tensor]:
        """The positions of this process, batch by batch, from batch number `start` on."""
        return [batch.tensor_split(self.world_size)[self.rank] for batch in self._batches(order)[start:]]

    def _batches(self, order: Tensor) -> list[Tensor]:
        """The positions of all processes, batch by batch: as many batches for every number of processes."""
        batches = list(order.split(self.batch_size))
        if self.world_size > 1 and len(batches[-1]) < 2 * self.world_size and len(batches) > 1:
            batches[-2:] = torch.cat(batches[-2:]).tensor_split(2)
        return batches

    def _batch(self, images: Tensor, where: Tensor, positions: Tensor, epoch: int, size: int, *, mix: bool) -> Batch:
        """The batch of `positions` in the data set, whose images are at `where` in `images`; with mix half as many."""
        index, y, key = self._index[positions], self._labels[positions], {"seed": self.seed, "epoch": epoch}
        transform = self._draw(index, epoch)
        x = self._show(images, where, transform)
        if mix:
            (x, other), (y, other_y), index = x.chunk(2), y.chunk(2), index[: len(index) // 2]
            shares = {"share": self.cutmix, "classes": self.data.num_classes}
            x, y = cutmix(x, other, y, other_y, index, **shares, **key)
            x, transform = x.contiguous(memory_format=self.memory_format), self._draw(index, epoch)
        if self.cutout is not None:
            x = cutout(x, index, self.cutout, **key)
        return Batch(self._shrink(x, epoch), y, index, transform, size)

    def _shrink(self, x: Tensor, epoch: int) -> Tensor:
        """The images at the resolution of the epoch."""
        begun = [first for first in self.resolutions if first <= epoch]
        side = self.resolutions[max(begun)] if begun else x.shape[2]
        if side == x.shape[2]:
            return x
        shrunk = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        # weights that add up to 1 but for rounding can give a little more than 1
        return shrunk.clamp_(0, 1).contiguous(memory_format=self.memory_format)

    def _show(self, images: Tensor, where: Tensor, transform: Transform | None) -> Tensor:
        """The transformed images (n, C, H, W) at `where`, new memory."""
        if images.is_floating_point():
            return images[where].to(memory_format=self.memory_format)
        shown = CropFlip.identity(len(where), 0, self.device) if transform is None else transform
        return shown.to_float(images, where, memory_format=self.memory_format)

    def _draw(self, index: Tensor, epoch: int) -> Transform | None:
        """The augmentation of the images `index` (n,); None for none."""
        if self.augment == "none":
            return None
        flip = may_flip(self.data.name)
        if self.augment == "shift":
            return CropFlip.draw(index, self.shape, self.padding, seed=self.seed, epoch=epoch, flip=flip)
        return ResizedCrop.draw(index, self.data.shape[1:], self.shape[1:], seed=self.seed, epoch=epoch, flip=flip)


def _check_sizes(shape: tuple[int, int, int], cutout: int | None, resolutions: Mapping[int, int]) -> None:
    """Raises ConfigError for a cutout or resolutions that do not fit images of shape (C, H, W)."""
    _, height, width = shape
    largest = min(height, width)
    if cutout is not None and not 1 <= cutout <= largest:
        raise ConfigError(f"expected a cutout of 1 to {largest} pixels, got {cutout}")
    for side in resolutions.values():
        if not 1 <= side <= largest or height != width:
            raise ConfigError(
                f"expected square images and resolutions of 1 to {largest} pixels, got {height} x {width} and {side}"
            )


def _mixture(data: ImageDataset, own: int, batch_size: int, fraction: float, seed: int) -> BatchMixture:
    return BatchMixture(data.index[:own], data.index[own:], batch_size, round(fraction * batch_size), seed)


def to_float(images: Tensor) -> Tensor:
    """uint8 images (n, C, H, W) as float32 in [0, 1], on every device bitwise equal to torchvision's ToTensor."""
    # CUDA turns division by a Python number into a product with 1/255, which rounds differently; not so with a tensor.
    return images / torch.full((), 255, dtype=torch.float32, device=images.device)


def _fits(data: ImageDataset, device: torch.device) -> bool:
    if device.type == "cuda":
        return data.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
    return isinstance(data.images, Tensor)


def _move(images: Tensor | MemmapImages, device: torch.device) -> Tensor:
    if isinstance(images, Tensor):
        return images.to(device)
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for chunk in torch.arange(len(images)).split(1024):  # the host never holds more than one chunk
        whole[chunk[0] : chunk[-1] + 1] = images[chunk].to(device)
    return whole
