"""Values that a method keeps for every training image, and that follow the image through augmentation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from pyengm.data import CropFlip, Transform
from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.index_map import IndexMap
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_any, world_size

CHUNK = 1024  # images that are drawn at a time


class PerExampleBuffer:
    """One tensor per training image on its canvas, (C, H + 2 padding, W + 2 padding), initially zero.

    A batch reads the window of the canvas that augmentation shows, flipped as the image is. What it writes changes that
    window, and the rest of the canvas stays.

    Args:
        dataset: The training images.
        dtype: The type of the memory; float16 halves it.
        resolution: The height and width of what is kept per channel, in place of those of the canvas, for large
            images. With it, and where augmentation resizes, reading is bilinear, and writing adds to each value the
            mean of the window's change over its part of the canvas: what lies outside the window changes only in the
            parts that its edge crosses.
        bound: Values are clipped to [-bound, bound].

    Raises:
        ConfigError: The resolution is above that of the canvas.
        DataError: An image occurs twice.

    References:
        Zheng et al. 2020, Sec. 4.2 (the canvas); Huang et al. 2022, Sec. V, "ImageNet" (the resolution).
    """

    def __init__(
        self,
        dataset: DatasetSpec,
        *,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        bound: float = math.inf,
    ):
        channels, height, width = dataset.shape
        self.seed, self.padding, self.bound = dataset.seed, dataset.padding, bound
        self.canvas = height + 2 * self.padding, width + 2 * self.padding
        if resolution is not None and not 1 <= resolution <= min(self.canvas):
            raise ConfigError(f"resolution is {resolution}; expected 1 to {min(self.canvas)}, the side of the canvas")
        self.coarse = resolution is not None
        self.images = IndexMap(dataset.index.to(dataset.device))
        side = self.canvas if resolution is None else (resolution, resolution)
        self.values = torch.zeros(len(self.index), channels, *side, dtype=dtype, device=dataset.device)

    @property
    def index(self) -> Tensor:
        """Identities (N,) of the images that this process keeps values for, in the order of the rows."""
        return self.images.index

    def rows(self, index: Tensor) -> Tensor:
        """The rows (n,) of the images with identities `index` (n,). Raises DataError for an unknown image."""
        return self.images.rows(index)

    def exchange(self, index: Tensor) -> None:
        """Makes this process the one that keeps the values of the images `index` (n,), fetched from other processes.

        Where several processes run, all call this, each with the images of its next batches; together they name every
        image once. A single process keeps all images.
        """
        index = index.to(self.values.device)
        if world_size() > 1 and all_reduce_any(not index.equal(self.index)):
            images = IndexMap(index)
            self.values = self.images.fetch_rows(self.values, images)
            self.images = images

    def initialize(self, epoch: int, draw: Callable[[Tensor, Key], Tensor]) -> None:
        """Gives all images new values.

        Args:
            epoch: The epoch of the keys.
            draw: draw(like, key) returns the values of the images of `key`, in the shape and type of `like`.
        """
        wide = torch.promote_types(self.values.dtype, torch.float32)
        for index, values in zip(self.index.split(CHUNK), self.values.split(CHUNK), strict=True):
            values.copy_(draw(torch.empty_like(values, dtype=wide), Key(self.seed, epoch, index)))

    def read(self, rows: Tensor, transform: Transform | None, like: Tensor) -> Tensor:
        """The windows of some images.

        Args:
            rows: (n,) rows of the images.
            transform: The augmentation of the images; None for no augmentation.
            like: A tensor of the type and device of the result.

        Returns:
            (n, C, H, W), new memory.

        Raises:
            DataError: The augmentation has another padding.
        """
        return self._window(transform, like).gather_window(self.values[rows].to(like))

    @torch.no_grad()
    def write(self, rows: Tensor, windows: Tensor, transform: Transform | None) -> None:
        """Stores windows (n, C, H, W) where `read` takes them from; rows, transform: as for `read`."""
        values = self._window(transform, windows).scatter_window(windows, self.values[rows].to(windows))
        self.values[rows] = values.clamp_(-self.bound, self.bound).to(self.values)

    def read_scalars(self, rows: Tensor, like: Tensor) -> Tensor:
        """The values (n,) of a buffer of one value per image, new memory; type and device as `like`."""
        return self.values[rows].flatten().to(like)

    def write_scalars(self, rows: Tensor, values: Tensor) -> None:
        """Stores values (n,) where `read_scalars` takes them from."""
        self.values[rows] = values.view(-1, 1, 1, 1).to(self.values)

    def state_dict(self) -> dict[str, Any]:
        """The identities of the images and their values, not copied."""
        return {"index": self.index, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, image by image. Raises CheckpointError for other images."""
        self.redistribute([state], self.index)

    def redistribute(self, states: Sequence[Mapping[str, Any]], index: Tensor) -> None:
        """Keeps the images `index` (n,) from now on, with the values in the states of a number of processes.

        Args:
            states: What `state_dict` returned, in all processes of a run.
            index: (n,) int64, the identities of the images that this process is to keep.

        Raises:
            CheckpointError: The states are for images of another shape, or lack some of the images.
        """
        images = IndexMap(index.to(self.values.device))
        same = images.index.equal(self.index)
        values = self.values if same else self.values.new_empty(len(images), *self.values.shape[1:])
        found = 0
        for state in states:
            saved, there = state["values"], state["index"].to(self.values.device)
            if saved.shape[1:] != values.shape[1:]:
                raise CheckpointError(
                    f"the buffer has values of shape {tuple(values.shape[1:])} per image, the saved one "
                    f"{tuple(saved.shape[1:])}: it is for other images"
                )
            here, rows = images.find(there)
            values[rows] = saved[here.to(saved.device)].to(values)
            found += len(rows)
        if found != len(images):
            raise CheckpointError(
                f"the saved buffer has {found} of {len(images)} training images: it is for other images"
            )
        self.images, self.values = images, values

    def _window(self, transform: Transform | None, like: Tensor) -> Transform:
        """The transform that gathers windows of the values, and scatters them."""
        if transform is None:
            transform = CropFlip.identity(len(like), self.padding, like.device)
        if transform.padding != self.padding:
            raise DataError(
                f"the buffer is for images padded by {self.padding} pixels, augmentation pads by {transform.padding}"
            )
        return transform.boxes(self.canvas) if self.coarse else transform


class BufferSlot:
    """An attribute of a method for a `PerExampleBuffer`, which its `prepare` sets.

    Raises:
        ConfigError: On reading, before `prepare`.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, method: None, owner: type) -> "BufferSlot": ...
    @overload
    def __get__(self, method: object, owner: type) -> PerExampleBuffer: ...
    def __get__(self, method: object | None, owner: type) -> "BufferSlot | PerExampleBuffer":
        if method is None:
            return self
        if self.name not in vars(method):
            raise ConfigError(
                f"{owner.__name__}.{self.name} keeps something for every image: call prepare(DatasetSpec(...)) once, "
                "before the first batch"
            )
        return vars(method)[self.name]

    def __set__(self, method: object, buffer: PerExampleBuffer) -> None:
        vars(method)[self.name] = buffer


def buffers_of(method: object) -> dict[str, PerExampleBuffer]:
    """The buffers in the slots of a method that are set, by name."""
    slots = [name for kind in type(method).__mro__ for name, slot in vars(kind).items() if isinstance(slot, BufferSlot)]
    return {name: vars(method)[name] for name in slots if name in vars(method)}
