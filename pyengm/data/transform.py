"""What a way of augmenting images offers to those who use it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyengm.data.resized_crop import ResizedCrop


class Transform(Protocol):
    """How n images of a batch were made: each shows a window (H, W) of its canvas (H + 2 padding, W + 2 padding).

    What is kept for an image lives on its canvas, and so follows the image through the windows of all epochs.
    """

    @property
    def padding(self) -> int:
        """By how many pixels the canvas is larger than a window, on each side."""

    def to_float(
        self,
        images: Tensor,
        positions: Tensor | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """The transformed images, (n, C, H, W) float32 in [0, 1].

        images: (N, C, ., .) uint8. positions: (n,) int64, which of them to take; None for all n.
        """

    def gather_window(self, canvas: Tensor) -> Tensor:
        """What the windows show of a canvas (n, C, H + 2 padding, W + 2 padding), new memory (n, C, H, W)."""

    def scatter_window(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """Puts `windows` (n, C, H, W) back to where `cut` found them in `canvas`, in place, and returns `canvas`.

        What no window shows stays as it is.
        """

    def boxes(self, canvas: tuple[int, int]) -> ResizedCrop:
        """The same windows on a canvas of (height, width) pixels that is kept at another resolution."""
