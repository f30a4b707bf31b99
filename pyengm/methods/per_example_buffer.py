"""What a method keeps for every training image, and how it follows the image through augmentation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    """One tensor per training image on its canvas, (C, H + 2 padding, W + 2 padding), at first zero.

    What a batch reads is the window that augmentation shows of the canvas, flipped as the image is; what it writes
    goes back to that window, and the rest of the canvas stays.
    dtype: of the memory; float16 halves it. resolution: keep resolution x resolution numbers per channel in place of
    the canvas, for large images. With it, and where augmentation resizes, reading is bilinear, and writing adds to
    each number the mean of the window's change over its part of the canvas: what lies outside the window changes only
    in the parts that its edge crosses.
    bound: values are kept in [-bound, bound].
    Raises ConfigError for a resolution above that of the canvas, DataError where an image occurs twice.
    Source: Zheng et al. 2020, Sec. 4.2 (the canvas); Huang et al. 2022, Sec. V ("ImageNet") (the resolution).
    """

    def __init__(
        self,
        examples: DatasetSpec,
        *,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        bound: float = math.inf,
    ):
        channels, height, width = examples.shape
        self.seed, self.padding, self.bound = examples.seed, examples.padding, bound
        self.canvas = height + 2 * self.padding, width + 2 * self.padding
        if resolution is not None and not 1 <= resolution <= min(self.canvas):
            raise ConfigError(f"resolution is {resolution}; expected 1 to {min(self.canvas)}, the side of the canvas")
        self.coarse = resolution is not None
        self.images = IndexMap(examples.index.to(examples.device))
        side = (resolution, resolution) if self.coarse else self.canvas
        self.values = torch.zeros(len(self.index), channels, *side, dtype=dtype, device=examples.device)

    @property
    def index(self) -> Tensor:
        """Identities of the images that this process keeps something for, (N,), by rows."""
        return self.images.index

    def rows(self, index: Tensor) -> Tensor:
        """Where the images with identities `index` (n,) are kept, (n,). Raises DataError for an unknown image."""
        return self.images.rows(index)

    def follow(self, index: Tensor) -> None:
        """Keeps the images `index` (n,) here from now on. Where several processes run, all call this, each with the
        images that it is going to see; together they name every image once. Alone a process keeps them all."""
        index = index.to(self.values.device)
        if world_size() > 1 and all_reduce_any(not index.equal(self.index)):
            images = IndexMap(index)
            self.values = self.images.moved(self.values, images)
            self.images = images

    def fill(self, epoch: int, draw: Callable[[Tensor, Key], Tensor]) -> None:
        """Gives all images new values: draw(like, key) for those of `key`, shape and type as `like`."""
        wide = torch.promote_types(self.values.dtype, torch.float32)
        for index, values in zip(self.index.split(CHUNK), self.values.split(CHUNK), strict=True):
            values.copy_(draw(torch.empty_like(values, dtype=wide), Key(self.seed, epoch, index)))

    def read(self, rows: Tensor, transform: Transform | None, like: Tensor) -> Tensor:
        """The windows (n, C, H, W) of the images in these rows, new memory; type and device as `like`.

        transform: what augmentation did to the images; None: nothing. Raises DataError for another padding.
        """
        return self._shown(transform, like).gather_window(self.values[rows].to(like))

    @torch.no_grad()
    def write(self, rows: Tensor, windows: Tensor, transform: Transform | None) -> None:
        """Puts windows (n, C, H, W) back to where `read` found them."""
        kept = self._shown(transform, windows).scatter_window(windows, self.values[rows].to(windows))
        self.values[rows] = kept.clamp_(-self.bound, self.bound).to(self.values)

    def read_scalars(self, rows: Tensor, like: Tensor) -> Tensor:
        """A store of one number per image: those in these rows, (n,), new memory; type and device as `like`."""
        return self.values[rows].flatten().to(like)

    def write_scalars(self, rows: Tensor, numbers: Tensor) -> None:
        """Puts numbers (n,) to where `numbers` found them."""
        self.values[rows] = numbers.view(-1, 1, 1, 1).to(self.values)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave, image by image. Raises CheckpointError for other images."""
        self.load([state], self.index)

    def load(self, states: Sequence[Mapping[str, Any]], index: Tensor) -> None:
        """Keeps the images `index` (n,) from now on, as the states of some processes have them.

        Raises CheckpointError where they are of another shape, or have not all of the images.
        """
        images = IndexMap(index.to(self.values.device))
        same = images.index.equal(self.index)
        values = self.values if same else self.values.new_empty(len(images), *self.values.shape[1:])
        found = 0
        for state in states:
            saved, there = state["values"], state["index"].to(self.values.device)
            if saved.shape[1:] != values.shape[1:]:
                raise CheckpointError(
                    f"the store has {tuple(values.shape[1:])} numbers per image, the saved one "
                    f"{tuple(saved.shape[1:])}: it is for other images"
                )
            here, rows = images.find(there)
            values[rows] = saved[here.to(saved.device)].to(values)
            found += len(rows)
        if found != len(images):
            raise CheckpointError(
                f"the saved store has {found} of {len(images)} training images: it is for other images"
            )
        self.images, self.values = images, values

    def _shown(self, transform: Transform | None, like: Tensor) -> Transform:
        """What cuts windows of what is kept, and pastes them."""
        if transform is None:
            transform = CropFlip.identity(len(like), self.padding, like.device)
        if transform.padding != self.padding:
            raise DataError(
                f"the store is for images padded by {self.padding} pixels, augmentation pads by {transform.padding}"
            )
        return transform.boxes(self.canvas) if self.coarse else transform
