"""Random shift and flip, drawn per image, and the way back for what is stored in un-augmented coordinates."""

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
    """For each of n images: pad all sides, cut a window of the old size, then perhaps flip left and right.

    rows, cols: (n,) int64 in [0, 2 * padding], the window's upper left corner on the padded image.
    flip: (n,) bool. padding: in pixels.
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
        """Draw for the images `index` (n,) int64, on its device, from (seed, epoch, index) alone.

        image_shape: (..., H, W). flip=False never mirrors.
        Raises DataError where the padding could push a whole image out of its window.
        """
        if not 0 <= padding < min(image_shape[-2:]):
            raise DataError(f"expected a padding of 0 to {min(image_shape[-2:]) - 1} pixels, got {padding}")
        corner = philox_uniform(index, (2,), seed=seed, purpose=Purpose.CROP, epoch=epoch)
        corner = (corner * (2 * padding + 1)).long()  # below 2 * padding + 1 also after rounding: u <= 1 - 2**-24
        flipped = draw_flip(index, seed=seed, epoch=epoch, flip=flip)
        return cls(corner[:, 0], corner[:, 1], flipped, padding)

    @classmethod
    def centre(cls, n: int, padding: int, device: torch.device | str = "cpu") -> CropFlip:
        """For n images that are not augmented: the middle of the padded image, not flipped."""
        corner = torch.full((n,), padding, device=device)
        return cls(corner, corner, torch.zeros_like(corner, dtype=torch.bool), padding)

    def apply(self, images: Tensor, fill: float = 0) -> Tensor:
        """The transformed images, a new tensor like `images` (n, C, H, W); the padding has the value `fill`."""
        height, width = self._size(images)
        y = torch.arange(height, device=images.device) + (self.rows - self.padding)[:, None]  # (n, H), of the source
        x = torch.arange(width, device=images.device).expand(len(images), -1)
        x = torch.where(self.flip[:, None], width - 1 - x, x) + (self.cols - self.padding)[:, None]  # (n, W)
        values, inside = _look_up(images, y, x)
        return values.masked_fill_(~inside, fill)

    def to_float(
        self,
        images: Tensor,
        positions: Tensor | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """`apply`, then division by 255, of uint8 images in one pass: (n, C, H, W) float32 in [0, 1].

        images: (N, C, H, W) uint8. positions: (n,) int64, which of them to take; None for all n.
        memory_format: contiguous or channels_last. Raises ValueError where these do not fit.
        """
        last = memory_format == torch.channels_last
        return crop_flip(images, self.rows, self.cols, self.flip, self.padding, positions=positions, channels_last=last)

    def invert(self, images: Tensor, out: Tensor) -> Tensor:
        """Write what is visible in the transformed `images` (n, C, H, W) back to its place in `out`, and return `out`.

        Pixels of `out` (n, C, H, W) outside the window stay as they are.
        """
        height, width = self._size(images)
        if out.shape != images.shape:
            raise DataError(f"expected out of shape {tuple(images.shape)}, got {tuple(out.shape)}")
        y = torch.arange(height, device=images.device) - (self.rows - self.padding)[:, None]  # (n, H), of `images`
        x = torch.arange(width, device=images.device) - (self.cols - self.padding)[:, None]
        x = torch.where(self.flip[:, None], width - 1 - x, x)  # (n, W)
        values, inside = _look_up(images, y, x)
        return out.copy_(torch.where(inside, values.to(out.dtype), out))

    def gather_window(self, canvas: Tensor) -> Tensor:
        """The windows (n, C, H, W) of padded images (n, C, H + 2 padding, W + 2 padding), flipped alike."""
        return canvas.flatten(2).gather(2, self._pixels(canvas)).view(self._windows_shape(canvas))

    def scatter_window(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """Write `windows` (n, C, H, W) to where `cut` takes them from in `canvas`, and return `canvas`.

        Pixels of `canvas` (n, C, H + 2 padding, W + 2 padding) outside the windows stay as they are.
        """
        pixels = self._pixels(canvas)
        if windows.shape != self._windows_shape(canvas):
            raise DataError(f"expected windows of shape {self._windows_shape(canvas)}, got {tuple(windows.shape)}")
        pasted = canvas.flatten(2).scatter(2, pixels, windows.to(canvas.dtype).flatten(2))
        return canvas.copy_(pasted.view(canvas.shape))

    def boxes(self, canvas: tuple[int, int]) -> ResizedCrop:
        """The windows on padded images of (height, width) pixels, as boxes that may be cut at any resolution."""
        size = canvas[0] - 2 * self.padding, canvas[1] - 2 * self.padding
        height, width = (torch.full_like(self.rows, side) for side in size)
        return ResizedCrop(self.rows, self.cols, height, width, self.flip, canvas, size)

    def _pixels(self, canvas: Tensor) -> Tensor:
        """Which pixels of the flattened canvas the windows show, (n, C, H * W)."""
        height, width = self._windows_shape(canvas)[2:]
        y = torch.arange(height, device=canvas.device) + self.rows[:, None]  # (n, H)
        x = torch.arange(width, device=canvas.device).expand(len(canvas), -1)
        x = torch.where(self.flip[:, None], width - 1 - x, x) + self.cols[:, None]  # (n, W)
        pixels = y[:, :, None] * canvas.shape[3] + x[:, None, :]
        return pixels.flatten(1)[:, None].expand(-1, canvas.shape[1], -1)

    def _windows_shape(self, canvas: Tensor) -> tuple[int, ...]:
        """(n, C, H, W), those of the windows on a canvas."""
        height, width = self._size(canvas)
        if min(height, width) <= 2 * self.padding:
            raise DataError(f"expected images padded by {self.padding} pixels on all sides, got {(*canvas.shape,)}")
        return (*canvas.shape[:2], height - 2 * self.padding, width - 2 * self.padding)

    def _size(self, images: Tensor) -> tuple[int, int]:
        if images.ndim != 4 or len(images) != len(self.rows):
            raise DataError(f"expected ({len(self.rows)}, C, H, W) for this transform, got {tuple(images.shape)}")
        return images.shape[-2], images.shape[-1]


def _look_up(images: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (n, C, H, W) at rows y (n, H) and columns x (n, W), and where these lie inside, (n, 1, H, W)."""
    height, width = images.shape[-2:]
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]
    pixel = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]  # (n, H, W)
    pixel = pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, pixel).view(images.shape), inside
