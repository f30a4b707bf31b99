"""Extra training images, such as synthetic ones, of which every batch has a fixed share."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pyengm.data.image_dataset import ImageDataset
from pyengm.data.order import random_permutation
from pyengm.errors import ConfigError, DataError
from pyengm.ops import Purpose

IMAGES, LABELS = ("image", "images"), ("label", "labels")  # names of the arrays in the files of several authors


def load_extra(path: str | Path, like: ImageDataset) -> ImageDataset:
    """Loads labelled images from a file of numpy.

    Args:
        path: An .npz file with "image" or "images", uint8 (N, H, W, C) or (N, C, H, W), and "label" or "labels", (N,)
            integers.
        like: The training images, which they must equal in shape and classes.

    Returns:
        The images, with positions in the file as their index.

    Raises:
        DataError: The file cannot be read, lacks an array, or holds images of another shape or type or other labels.
    """
    path = Path(path).expanduser()
    name = str(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = (_array(file, names, name) for names in (IMAGES, LABELS))
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise DataError(f"{name}: expected an .npz file of numpy: {error}") from error
    channels, height, width = like.shape
    if images.dtype != np.uint8 or images.shape[1:] not in ((height, width, channels), like.shape):
        raise DataError(
            f"{name}: expected uint8 images of shape (N, {height}, {width}, {channels}), as {like.name} has, "
            f"got {images.dtype} {images.shape}"
        )
    if images.shape[1:] != like.shape:
        images = images.transpose(0, 3, 1, 2)
    return ImageDataset(np.ascontiguousarray(images), labels, like.classes, name, "extra")


def _array(file: np.lib.npyio.NpzFile, names: tuple[str, ...], path: str) -> np.ndarray:
    found = [name for name in names if name in file.files]
    if len(found) != 1:
        raise DataError(f"{path}: expected one array named {' or '.join(names)}; it has {', '.join(file.files)}")
    return file[found[0]]


def with_extra(data: ImageDataset, extra: ImageDataset) -> ImageDataset:
    """Returns both sets in one, in memory; the extra images' indices follow the largest of the others.

    Raises:
        DataError: The extra images have another shape or type or other classes.
    """
    if extra.shape != data.shape or extra.classes != data.classes or extra.images.dtype != data.images.dtype:
        raise DataError(
            f"{extra.name}: expected {data.images.dtype} images of shape {data.shape} in the {data.num_classes} "
            f"classes of {data.name}, got {extra.images.dtype} {extra.shape} in {extra.num_classes}"
        )
    images = torch.cat([data.images[:], extra.images[:]])
    index = torch.cat([data.index, extra.index + int(data.index.max()) + 1])
    return ImageDataset(images, torch.cat([data.labels, extra.labels]), data.classes, data.name, data.split, index)


@dataclass(frozen=True)
class BatchMixture:
    """Batches with a fixed number of extra images each.

    An epoch has as many batches as without the extra images, and all are full. Each kind of image is shuffled and runs
    through whole before it begins again in another order, over the ends of epochs; what does not fill a batch at the
    end of such a round is left out of it. So no image is twice in a batch. One that is twice in an epoch, as few extra
    images are, has the same augmentation and random start both times.

    Args:
        own: (N,) int64, the indices of the data set's own images, which come first in the joint set.
        extra: (M,) int64, the indices of the extra images.
        batch_size: Images per batch.
        extra_per_batch: Extra images among them.
        seed: Of the order.

    Raises:
        ConfigError: A batch would take no image of a kind, or more than there are.

    References:
        Gowal et al. 2021, "Improving Robustness using Generated Data"; the share of generated images per batch is 0.7
        on CIFAR-10 there.
    """

    own: Tensor
    extra: Tensor
    batch_size: int
    extra_per_batch: int
    seed: int

    def __post_init__(self) -> None:
        own = self.batch_size - self.extra_per_batch
        if not (1 <= self.extra_per_batch <= len(self.extra) and 1 <= own <= len(self.own)):
            raise ConfigError(
                f"expected from 1 to {len(self.extra)} extra images and from 1 to {len(self.own)} others in a batch, "
                f"got {self.extra_per_batch} and {own}: change the batch size or extra_fraction"
            )

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Positions in the joint set, batch after batch, (len(self) * batch_size,) int64 on the CPU."""
        own = self._draw(self.own, self.batch_size - self.extra_per_batch, epoch)
        return torch.cat([own, self._draw(self.extra, self.extra_per_batch, epoch) + len(self.own)], 1).flatten()

    def _draw(self, index: Tensor, per_batch: int, epoch: int) -> Tensor:
        """Positions (batches, per_batch) among images of one kind."""
        per_round = len(index) // per_batch  # batches
        first, last = epoch * len(self), (epoch + 1) * len(self)
        rounds = []
        for number in range(first // per_round, (last - 1) // per_round + 1):
            order = random_permutation(index, seed=self.seed, purpose=Purpose.SHUFFLE, epoch=number)
            rounds.append(order[: per_round * per_batch].view(per_round, per_batch))
        start = first - first // per_round * per_round
        return torch.cat(rounds)[start : start + len(self)]
