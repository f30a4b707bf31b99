"""Loader on the compute device: shuffled, augmented, and a function of (seed, epoch, image) alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.data.augment import CropFlip
from pyengm.data.flip import may_flip
from pyengm.data.host_transfer import Fetcher
from pyengm.data.image_dataset import ImageDataset
from pyengm.data.order import shuffled
from pyengm.data.prefetch import prefetch
from pyengm.data.resized_crop import ResizedCrop
from pyengm.data.transform import Transform
from pyengm.errors import ConfigError
from pyengm.ops import Purpose

AUGMENTATIONS = ("none", "shift", "resized")
# Threads that fetch batches from the host. Images of 256 x 256 from a cold virtual disk: 1,600 a second with one,
# 1,900 with two, 2,000 with four; from memory one thread is as good.
READERS = 4


@dataclass(frozen=True, eq=False)
class Batch:
    """x: (n, C, H, W) float32 in [0, 1]; y: (n,) int64; index: (n,) int64; transform: what was done to x, or None.

    size: images in the whole batch, of which these n are the part of one process.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    transform: Transform | None
    size: int


class Loader:
    """The batches of a data set, epoch by epoch; the last batch of an epoch may be short.

    batch_size: images per batch, over all world_size. device: where batches appear. seed: of order and augmentation.
    augment: "none"; "shift" by up to an eighth of the image; or "resized" crops of 8 to 100 % of its area. The
        latter two also flip where `AUGMENT` allows it.
    crop: (H, W) of resized crops; None for that of the data. Smaller ones leave more pixels to choose from.
    shuffle: a new order each epoch; else that of the data.
    resident: keep the whole set on the device (True), or let threads fetch batches from the host (False): both give
        the same batches. None: on CUDA if it takes less than half of the free memory, elsewhere if it is in memory.
    memory_format: of the images of a batch, contiguous or channels_last.
    rank, world_size: every batch is cut into `parts` runs of images whose lengths differ by at most one, and this is the
        one numbered `part`. A last batch of fewer than two images for each part gets half of the one before it.
    Raises ConfigError for a batch size below 1, an unknown augmentation, a crop without resized ones, and world_size that
    would get fewer than four images of a batch; DataError for crops that `ResizedCrop.draw` does not make of these.
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
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise ConfigError(f"expected a batch size of 1 or more, got {batch_size}")
        if augment not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {augment!r}; known: {', '.join(AUGMENTATIONS)}")
        if crop is not None and augment != "resized":
            raise ConfigError(f"expected no crop with augmentation {augment!r}, got {crop}: it is for resized")
        if not 0 <= rank < world_size:
            raise ConfigError(f"expected a rank from 0 to world_size - 1, got rank {rank} of {world_size}")
        if world_size > 1 and min(batch_size, len(data)) < 4 * world_size:
            raise ConfigError(
                f"expected 4 images of every batch for each of {world_size} processes, got batches of {batch_size} from "
                f"{len(data)} images: use fewer processes or larger batches"
            )
        self.data, self.batch_size, self.device = data, batch_size, torch.device(device)
        self.seed, self.augment, self.shuffle = seed, augment, shuffle
        self.memory_format = memory_format
        self.rank, self.world_size = rank, world_size
        self.resident = _fits(data, self.device) if resident is None else resident
        self._images = _move(data.images, self.device) if self.resident else data.images
        self._labels = data.labels.to(self.device)
        self._index = data.index.to(self.device)
        self.shape = (data.channels, *(crop or data.shape[1:]))  # (C, H, W) of the images of a batch
        self._draw(self._index[:0], epoch=0)  # raises what there is to raise

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    @property
    def padding(self) -> int:
        """Pixels on each side by which the canvas that augmentation shows a window of is larger than that."""
        if self.augment == "shift":
            return min(self.data.shape[1:]) // 8
        return (self.data.shape[1] - self.shape[1]) // 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from batch number `start` on; ConfigError for a start outside [0, len]."""
        if not 0 <= start <= len(self):
            raise ConfigError(f"expected a first batch from 0 to {len(self)}, got {start}: was the batch size changed?")
        return self._epoch(epoch, start)

    def order(self, epoch: int) -> Tensor:
        """Positions (N,) int64 on the CPU, in the order of `epoch`."""
        if not self.shuffle:
            return torch.arange(len(self.data))
        return shuffled(self.data.index, seed=self.seed, purpose=Purpose.SHUFFLE, epoch=epoch)

    def kept(self, epoch: int) -> Tensor:
        """Identities (n,) of the images of this part in `epoch`, in the order of the data."""
        return self.data.index[torch.cat(self._parts_of(self.order(epoch), 0)).sort().values]

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)
        sizes = [len(batch) for batch in self._whole(order)[start:]]
        here = self._parts_of(order.to(self.device), start)
        if self.resident:
            for positions, size in zip(here, sizes, strict=True):
                yield self._batch(self._images, positions, positions, epoch, size)
            return
        fetcher = Fetcher(self._images, self.device, most=-(-self.batch_size // self.world_size))
        with closing(prefetch(fetcher, self._parts_of(order, start), ahead=READERS, threads=READERS)) as fetched:
            for (images, places), positions, size in zip(fetched, here, sizes, strict=True):
                if images.is_cuda:  # they come from another stream: their memory is not free before this one is done
                    images.record_stream(torch.cuda.current_stream(self.device))
                    places.record_stream(torch.cuda.current_stream(self.device))
                yield self._batch(images, places, positions, epoch, size)

    def _parts_of(self, order: Tensor, start: int) -> list[Tensor]:
        """The positions that are this part's, batch by batch, from batch number `start` on."""
        return [batch.tensor_split(self.world_size)[self.rank] for batch in self._whole(order)[start:]]

    def _whole(self, order: Tensor) -> list[Tensor]:
        """The positions of all world_size, batch by batch: as many batches whatever the number of world_size."""
        batches = list(order.split(self.batch_size))
        if self.world_size > 1 and len(batches[-1]) < 2 * self.world_size and len(batches) > 1:
            batches[-2:] = torch.cat(batches[-2:]).tensor_split(2)
        return batches

    def _batch(self, images: Tensor, chosen: Tensor, positions: Tensor, epoch: int, size: int) -> Batch:
        """The batch of `positions` in the data set; its images are those `chosen` in `images`."""
        index = self._index[positions]
        transform = self._draw(index, epoch)
        made = CropFlip.centre(len(index), 0, self.device) if transform is None else transform
        x = made.to_float(images, chosen, memory_format=self.memory_format)
        return Batch(x, self._labels[positions], index, transform, size)

    def _draw(self, index: Tensor, epoch: int) -> Transform | None:
        """How the images `index` (n,) are augmented; None for not at all."""
        if self.augment == "none":
            return None
        key = {"seed": self.seed, "epoch": epoch, "flip": may_flip(self.data.name)}
        if self.augment == "shift":
            return CropFlip.draw(index, self.shape, self.padding, **key)
        return ResizedCrop.draw(index, self.data.shape[1:], self.shape[1:], **key)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], on every device bitwise what torchvision's ToTensor gives."""
    # CUDA turns division by a Python number into a product with 1/255, which rounds differently; not so with a tensor.
    return images / torch.full((), 255, dtype=torch.float32, device=images.device)


def _fits(data: ImageDataset, device: torch.device) -> bool:
    if device.type == "cuda":
        return data.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
    return isinstance(data.images, Tensor)


def _move(images, device: torch.device) -> Tensor:
    if isinstance(images, Tensor):
        return images.to(device)
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for part in torch.arange(len(images)).split(1024):  # the host never holds more than one part
        whole[part[0] : part[-1] + 1] = images[part].to(device)
    return whole
