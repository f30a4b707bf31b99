"""What a method keeps for every training picture, and how it follows the picture through augmentation."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyengm.data import CropFlip, Transform
from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.methods.base import Examples
from pyengm.ops import Key

CHUNK = 1024  # pictures that are drawn at a time


class Store:
    """One tensor per training picture on its canvas, (C, H + 2 padding, W + 2 padding), at first zero.

    What a batch reads is the window that augmentation shows of the canvas, mirrored as the picture is; what it writes
    goes back to that window, and the rest of the canvas stays.
    dtype: of the memory; float16 halves it. resolution: keep resolution x resolution numbers per channel in place of
    the canvas, for large pictures. With it, and where augmentation resizes, reading is bilinear, and writing adds to
    each number the mean of the window's change over its part of the canvas: what lies outside the window changes only
    in the parts that its edge crosses.
    bound: values are kept in [-bound, bound].
    Raises ConfigError for a resolution above that of the canvas, DataError where a picture occurs twice.
    Source: Zheng et al. 2020, Sec. 4.2 (the canvas); Huang et al. 2022, Sec. V ("ImageNet") (the resolution).
    """

    def __init__(
        self,
        examples: Examples,
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
        self.index = examples.index.to(examples.device)
        self._sorted, self._order = self.index.sort()
        if len(self._sorted.unique_consecutive()) < len(self.index):
            raise DataError("the training pictures have identities that occur more than once")
        side = (resolution, resolution) if self.coarse else self.canvas
        self.values = torch.zeros(len(self.index), channels, *side, dtype=dtype, device=examples.device)

    def rows(self, index: Tensor) -> Tensor:
        """Where the pictures with identities `index` (n,) are kept, (n,). Raises DataError for an unknown picture."""
        index = index.to(self.index.device)
        place = torch.searchsorted(self._sorted, index).clamp_(max=len(self._sorted) - 1)
        unknown = self._sorted[place] != index
        if unknown.any():
            raise DataError(
                f"{int(unknown.sum())} of {len(index)} pictures are none of the {len(self.index)} that the method was "
                f"prepared for (first: identity {index[unknown][0].item()}); tell prepare() about all training pictures"
            )
        return self._order[place]

    def fill(self, epoch: int, draw: Callable[[Tensor, Key], Tensor]) -> None:
        """Gives all pictures new values: draw(like, key) for those of `key`, shape and type as `like`."""
        wide = torch.promote_types(self.values.dtype, torch.float32)
        for index, values in zip(self.index.split(CHUNK), self.values.split(CHUNK), strict=True):
            values.copy_(draw(torch.empty_like(values, dtype=wide), Key(self.seed, epoch, index)))

    def read(self, rows: Tensor, transform: Transform | None, like: Tensor) -> Tensor:
        """The windows (n, C, H, W) of the pictures in these rows, new memory; type and device as `like`.

        transform: what augmentation did to the pictures; None: nothing. Raises DataError for another padding.
        """
        return self._shown(transform, like).cut(self.values[rows].to(like))

    @torch.no_grad()
    def write(self, rows: Tensor, windows: Tensor, transform: Transform | None) -> None:
        """Puts windows (n, C, H, W) back to where `read` found them."""
        kept = self._shown(transform, windows).paste(windows, self.values[rows].to(windows))
        self.values[rows] = kept.clamp_(-self.bound, self.bound).to(self.values)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_(self.values, state["values"], "the store")

    def _shown(self, transform: Transform | None, like: Tensor) -> Transform:
        """What cuts windows of what is kept, and pastes them."""
        if transform is None:
            transform = CropFlip.centre(len(like), self.padding, like.device)
        if transform.padding != self.padding:
            raise DataError(
                f"the store is for pictures padded by {self.padding} pixels, augmentation pads by {transform.padding}"
            )
        return transform.boxes(self.canvas) if self.coarse else transform


def load_(ours: Tensor, saved: Tensor, name: str) -> None:
    """Copies saved to ours, in place. Raises CheckpointError where the shapes differ."""
    if saved.shape != ours.shape:
        raise CheckpointError(
            f"{name} has the shape {tuple(ours.shape)}, the saved one {tuple(saved.shape)}: it is for other pictures"
        )
    ours.copy_(saved)
