"""Random shift and flip, drawn per image, and the inverse for values that are stored in un-augmented coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.data.flip import draw_flip
from pyengm.data.resized_crop import ResizedCrop
from pyengm.errors import DataError
from pyengm.ops import Purpose, crop_flip, philox_uniform


@dataclass(frozen=True, eq=False)
class CropFlip:
    """For each of n images: pad all sides, crop a window of the old size, then perhaps flip left and right.

    Args:
        rows: (n,) int64 in [0, 2 * padding], the top of the window on the padded image, in pixels.
        cols: (n,) int64 in [0, 2 * padding], its left side.
        flip: (n,) bool.
        padding: in pixels.
    """

    rows: Tensor
    cols: Tensor
    flip: Tensor
    padding: int

    @classmethod
    def draw(
        cls,
        index: Tensor,
        image_shape: tuple[int, ...],
        padding: int = 4,
        *,
        seed: int,
        epoch: int,
        flip: bool = True,
    ) -> CropFlip:
        """Draws windows that depend on the seed, the epoch and each image's index alone.

        Args:
            index: (n,) int64, the indices of the images; the windows are on its device.
            image_shape: (..., H, W) in pixels.
            padding: in pixels, less than the smaller side of the images.
            seed: of the random values.
            epoch: of the random values.
            flip: flip each image with probability 1/2; False for none.

        Raises:
            DataError: the padding could push a whole image out of its window.
        """
        if not 0 <= padding < min(image_shape[-2:]):
            raise DataError(f"expected a padding of 0 to {min(image_shape[-2:]) - 1} pixels, got {padding}")
        corner = philox_uniform(index, (2,), seed=seed, purpose=Purpose.CROP, epoch=epoch)
        corner = (corner * (2 * padding + 1)).long()  # below 2 * padding + 1 also after rounding: u <= 1 - 2**-24
        flipped = draw_flip(index, seed=seed, epoch=epoch, flip=flip)
        return cls(corner[:, 0], corner[:, 1], flipped, padding)

    @classmethod
    def identity(cls, n: int, padding: int, device: torch.device | str = "cpu") -> CropFlip:
        """The windows of n images that are not augmented: the middle of the padded image, not flipped."""
        corner = torch.full((n,), padding, device=device)
        return cls(corner, corner, torch.zeros_like(corner, dtype=torch.bool), padding)

    def to_float(
        self,
        images: Tensor,
        positions: Tensor | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Pads with zeros, crops, flips and divides by 255, in one pass.

        Args:
            images: (N, C, H, W) uint8.
            positions: (n,) int64, the images to take; None for all n.
            memory_format: of the result, contiguous or channels_last.

        Returns:
            (n, C, H, W) float32 in [0, 1].

        Raises:
            ValueError: shapes or types do not fit.
        """
        last = memory_format == torch.channels_last
        return crop_flip(images, self.rows, self.cols, self.flip, self.padding, positions=positions, channels_last=last)

    def gather_window(self, canvas: Tensor) -> Tensor:
        """Crops and flips images that are already padded.

        Args:
            canvas: (n, C, H + 2 padding, W + 2 padding).

        Returns:
            (n, C, H, W), new memory.

        Raises:
            DataError: the shape does not fit.
        """
        return canvas.flatten(2).gather(2, self._pixels(canvas)).view(self._window_shape(canvas))

    def scatter_window(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """Writes windows to where `gather_window` reads them; pixels outside the windows stay as they are.

        Args:
            windows: (n, C, H, W).
            canvas: (n, C, H + 2 padding, W + 2 padding), changed in place.

        Returns:
            The canvas.

        Raises:
            DataError: a shape does not fit.
        """
        pixels = self._pixels(canvas)
        if windows.shape != self._window_shape(canvas):
            raise DataError(f"expected windows of shape {self._window_shape(canvas)}, got {tuple(windows.shape)}")
        written = canvas.flatten(2).scatter(2, pixels, windows.to(canvas.dtype).flatten(2))
        return canvas.copy_(written.view(canvas.shape))

    def boxes(self, canvas: tuple[int, int]) -> ResizedCrop:
        """The same windows on a canvas of (height, width) pixels, which may be stored at any resolution."""
        size = canvas[0] - 2 * self.padding, canvas[1] - 2 * self.padding
        height, width = (torch.full_like(self.rows, side) for side in size)
        return ResizedCrop(self.rows, self.cols, height, width, self.flip, canvas, size)

    def _pixels(self, canvas: Tensor) -> Tensor:
        """The positions of the windows' pixels in the flattened canvas, (n, C, H * W)."""
        height, width = self._window_shape(canvas)[2:]
        y = torch.arange(height, device=canvas.device) + self.rows[:, None]  # (n, H)
        x = torch.arange(width, device=canvas.device).expand(len(canvas), -1)
        x = torch.where(self.flip[:, None], width - 1 - x, x) + self.cols[:, None]  # (n, W)
        pixels = y[:, :, None] * canvas.shape[3] + x[:, None, :]
        return pixels.flatten(1)[:, None].expand(-1, canvas.shape[1], -1)

    def _window_shape(self, canvas: Tensor) -> tuple[int, int, int, int]:
        """(n, C, H, W) of the windows on a canvas."""
        if canvas.ndim != 4 or len(canvas) != len(self.rows):
            raise DataError(f"expected ({len(self.rows)}, C, H, W) for this transform, got {tuple(canvas.shape)}")
        n, channels, height, width = canvas.shape
        if min(height, width) <= 2 * self.padding:
            raise DataError(f"expected images padded by {self.padding} pixels on all sides, got {(*canvas.shape,)}")
        return n, channels, height - 2 * self.padding, width - 2 * self.padding
