"""Random resized crops, drawn per image, and their inverse for values that are stored at any resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.data.flip import draw_flip
from pyengm.errors import DataError
from pyengm.ops import Purpose, crop_flip, philox_uniform

SCALE = 0.08, 1.0  # of the image's area
RATIO = 3 / 4, 4 / 3  # width over height
TRIES = 10
CHUNK = 8  # images that a CPU resizes at a time: their floats are still in the cache, or in memory allocated before


def margin_for(size: int) -> int:
    """The pixels on each side by which an image should be larger than its crops.

    16 for crops of 224, so that the image has ImageNet's customary 256, and about that share for other sizes.

    Args:
        size: the side of a crop in pixels.
    """
    return round(size / 14)


@dataclass(frozen=True, eq=False)
class ResizedCrop:
    """For each of n images: crop a box, resize it to the size of all, then perhaps flip left and right.

    Resizing is bilinear without antialiasing, and uses no pixel outside the box. With the margin of `margin_for` a box
    shrinks to about 7/8 at most, where each of its pixels still counts; crops of much larger images are jagged.

    Args:
        top: (n,) int64, of the box in pixels of the canvas; left, height and width alike.
        left: (n,) int64.
        height: (n,) int64.
        width: (n,) int64.
        flip: (n,) bool.
        canvas: (height, width) of the images in pixels.
        size: (height, width) of the crops after resizing.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    canvas: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def draw(
        cls,
        index: Tensor,
        canvas: tuple[int, int],
        size: tuple[int, int],
        *,
        seed: int,
        epoch: int,
        flip: bool = True,
    ) -> ResizedCrop:
        """Draws boxes that depend on the seed, the epoch and each image's index alone.

        A box has 8 to 100 % of the area and a ratio of 3/4 to 4/3, uniform in its logarithm; after ten that do not fit
        it is the largest in the middle that has such a ratio.

        Args:
            index: (n,) int64, the indices of the images; the boxes are on its device.
            canvas: (height, width) of the images in pixels.
            size: (height, width) of the crops after resizing.
            seed: of the random values.
            epoch: of the random values.
            flip: flip each image with probability 1/2; False for none.

        Raises:
            DataError: the canvas is not larger than the size by the same even number of pixels in both directions.

        References:
            Szegedy et al. 2015, Sec. 6; the tries are those of torchvision's RandomResizedCrop.
        """
        spare = {whole - crop for whole, crop in zip(canvas, size, strict=True)}
        if len(spare) > 1 or min(spare) < 0 or min(spare) % 2 or min(size) < 1:
            raise DataError(
                f"expected crops that are smaller than the images by one even number of pixels in both directions, "
                f"got crops of {size[0]}x{size[1]} from images of {canvas[0]}x{canvas[1]}"
            )
        u = philox_uniform(index, (2 * TRIES + 2,), seed=seed, purpose=Purpose.CROP, epoch=epoch).double()
        low, high = (math.log(ratio) for ratio in RATIO)
        area = (SCALE[0] + (SCALE[1] - SCALE[0]) * u[:, :TRIES]) * (canvas[0] * canvas[1])  # (n, tries)
        ratio = (low + (high - low) * u[:, TRIES : 2 * TRIES]).exp()
        heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
        fits = (heights >= 1) & (heights <= canvas[0]) & (widths >= 1) & (widths <= canvas[1])
        first = fits.int().argmax(dim=1, keepdim=True)
        any_fits = fits.any(dim=1)
        last_height, last_width = _largest(canvas)
        height = torch.where(any_fits, heights.gather(1, first)[:, 0], last_height)
        width = torch.where(any_fits, widths.gather(1, first)[:, 0], last_width)
        free = torch.stack([canvas[0] - height, canvas[1] - width], dim=1)
        # below free + 1 also after rounding: u <= 1 - 2**-24, and the product is a float64
        corner = torch.where(any_fits[:, None], (u[:, -2:] * (free + 1)).long(), free // 2)
        flipped = draw_flip(index, seed=seed, epoch=epoch, flip=flip)
        return cls(corner[:, 0], corner[:, 1], height, width, flipped, canvas, size)

    @property
    def padding(self) -> int:
        """By how many pixels the canvas is larger than a crop, on each side."""
        return (self.canvas[0] - self.size[0]) // 2

    def to_float(
        self,
        images: Tensor,
        positions: Tensor | None = None,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Crops, resizes and flips images, and divides by 255.

        Args:
            images: (N, C, *canvas) uint8.
            positions: (n,) int64, the images to take; None for all n.
            memory_format: of the result, contiguous or channels_last.

        Returns:
            (n, C, *size) float32 in [0, 1].

        Raises:
            DataError: shapes do not fit.
            ValueError: types or positions do not fit.
        """
        if images.shape[2:] != self.canvas:
            raise DataError(f"expected images (N, C, {self.canvas[0]}, {self.canvas[1]}), got {tuple(images.shape)}")
        n = len(self.top)
        positions = torch.arange(len(images), device=images.device) if positions is None else positions
        if positions.shape != (n,):
            raise DataError(f"expected {n} images for this transform, got {tuple(positions.shape)}")
        chunk = CHUNK if images.device.type == "cpu" else max(n, 1)
        out = torch.empty((n, images.shape[1], *self.size), device=images.device, memory_format=memory_format)
        for start in range(0, n, chunk):
            some = slice(start, start + chunk)
            zero = torch.zeros_like(self.top[some])
            whole = crop_flip(images, zero, zero, zero.bool(), 0, positions=positions[some])
            # weights that add up to 1 but for rounding can give a little more than 1
            torch.clamp(self._subset(some).gather_window(whole), 0, 1, out=out[some])
        return out

    def gather_window(self, canvas: Tensor) -> Tensor:
        """Crops, resizes and flips canvases.

        Args:
            canvas: (n, C, ., .) floating point, of any resolution.

        Returns:
            (n, C, *size).

        Raises:
            DataError: the shape does not fit.
        """
        self._check(canvas)
        y, x = self._positions(0.5)
        # no position lies beyond the centres of the outermost pixels of a box
        y = torch.clamp(y, self.top[:, None] + 0.5, (self.top + self.height)[:, None] - 0.5) / self.canvas[0] * 2 - 1
        x = torch.clamp(x, self.left[:, None] + 0.5, (self.left + self.width)[:, None] - 0.5) / self.canvas[1] * 2 - 1
        shape = len(canvas), *self.size
        x, y = x[:, None, :].to(canvas.dtype), y[:, :, None].to(canvas.dtype)
        grid = torch.stack([x.expand(shape), y.expand(shape)], dim=3)  # from -1 to 1 over the canvas
        return F.grid_sample(canvas, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def scatter_window(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """Adds to every value of a canvas the mean change of the area that the value covers.

        The change is the difference between the windows and the result of `gather_window`, and 0 outside the boxes.

        Args:
            windows: (n, C, *size).
            canvas: (n, C, ., .) floating point, of any resolution, changed in place.

        Returns:
            The canvas.

        Raises:
            DataError: a shape does not fit.
        """
        self._check(canvas)
        if windows.shape != (*canvas.shape[:2], *self.size):
            expected = (*canvas.shape[:2], *self.size)
            raise DataError(f"expected windows of shape {expected}, got {tuple(windows.shape)}")
        change = windows.to(canvas.dtype) - self.gather_window(canvas)
        y, x = self._positions(0)
        down = _overlaps(y * (canvas.shape[2] / self.canvas[0]), canvas.shape[2]).to(canvas.dtype)  # (n, ., size[0])
        across = _overlaps(x * (canvas.shape[3] / self.canvas[1]), canvas.shape[3]).to(canvas.dtype)
        return canvas.add_(down[:, None] @ change @ across[:, None].mT)

    def boxes(self, canvas: tuple[int, int]) -> ResizedCrop:
        """This transform. Raises DataError for another canvas than its own."""
        if tuple(canvas) != self.canvas:
            raise DataError(f"these are boxes on a canvas of {self.canvas} pixels, expected one of {tuple(canvas)}")
        return self

    def _subset(self, some: slice) -> ResizedCrop:
        boxes = (t[some] for t in (self.top, self.left, self.height, self.width))
        return ResizedCrop(*boxes, flip=self.flip[some], canvas=self.canvas, size=self.size)

    def _positions(self, first: float) -> tuple[Tensor, Tensor]:
        """Rows and columns (n, .) of the crops in pixels of the canvas: of pixel centres for 0.5, of edges for 0."""
        y, x = (torch.arange(first, side + 1 - first, device=self.top.device) for side in self.size)
        x = torch.where(self.flip[:, None], self.size[1] - x, x)
        y = self.top[:, None] + y * (self.height[:, None].double() / self.size[0])
        return y, self.left[:, None] + x * (self.width[:, None].double() / self.size[1])

    def _check(self, canvas: Tensor) -> None:
        if canvas.ndim != 4 or len(canvas) != len(self.top):
            raise DataError(f"expected ({len(self.top)}, C, H, W) for this transform, got {tuple(canvas.shape)}")


def _largest(canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest box of an image (height, width) whose ratio is in RATIO."""
    height, width = canvas
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def _overlaps(edges: Tensor, cells: int) -> Tensor:
    """The share of each of `cells` unit intervals that lies between neighbours of edges (n, m + 1): (n, cells, m)."""
    low, high = torch.minimum(edges[:, :-1], edges[:, 1:]), torch.maximum(edges[:, :-1], edges[:, 1:])
    cell = torch.arange(cells, device=edges.device)[:, None]
    return (torch.minimum(high[:, None], cell + 1) - torch.maximum(low[:, None], cell)).clamp_(min=0)
