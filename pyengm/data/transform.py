"""The protocol of augmentations."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyengm.data.resized_crop import ResizedCrop


class Transform(Protocol):
    """The augmentation of n images: each shows a window (H, W) of its canvas (H + 2 padding, W + 2 padding).

    Values that are stored for an image lie on its canvas, and so follow the image through the windows of all epochs.
    """

    @property
    def padding(self) -> int:
        """By how many pixels the canvas is larger than a window, on each side."""
        ...

    def to_float(
        self,
        images: Tensor,
        positions: Tensor | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """The transformed images.

        Args:
            images: (N, C, ., .) uint8.
            positions: (n,) int64, the images to take; None for all n.
            memory_format: of the result, contiguous or channels_last.

        Returns:
            (n, C, H, W) float32 in [0, 1].
        """
        ...

    def gather_window(self, canvas: Tensor) -> Tensor:
        """The windows of a canvas (n, C, H + 2 padding, W + 2 padding): (n, C, H, W), new memory."""
        ...

    def scatter_window(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """Writes windows (n, C, H, W) to where `gather_window` reads them, in place, and returns the canvas.

        Values that no window shows stay as they are.
        """
        ...

    def boxes(self, canvas: tuple[int, int]) -> ResizedCrop:
        """The same windows on a canvas of (height, width) pixels that is stored at another resolution."""
        ...
