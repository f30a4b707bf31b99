"""A model of the cost of per-example gradient norms on a GPU, and the tiles that it chooses; without Triton.

Costs are multiply-adds of one example on tensor cores, including those that tiles add at their edges. Where tiles were
timed, `conv_tuning` uses the times instead.
"""

import itertools
from typing import NamedTuple

from pyengm.kernels.conv_shape import ConvShape

GRAM_PRODUCT = 1.25  # cost of a product of the Gram form, in products of the direct form: it reads more per product
MIN_SIDE = 16  # least number of rows and columns, and least depth, of a product on tensor cores
FULL_ROWS = 64  # rows that keep tensor cores busy
GRAM_TILES = ((16, 128, 2), (32, 128, 2), (64, 64, 4))  # pixels, channels of 16-bit operands, warps
PATCH_CHANNELS = 16  # with fewer channels the columns of a tile cover several offsets of the kernel


class DirectTile(NamedTuple):
    """A tile of the direct form: outputs x columns of the gradient at several offsets of the kernel.

    Args:
        outputs: output channels.
        columns: input channels, or pairs of offset and channel where `patch` is True.
        positions: output pixels in one step of the sum.
        offsets: offsets of the kernel.
        patch: whether columns are pairs of offset and channel.
        warps: warps of a program.
        stages: depth of the software pipeline.
    """

    outputs: int
    columns: int
    positions: int
    offsets: int
    patch: bool
    warps: int
    stages: int

    def count(self, shape: ConvShape) -> int:
        """The number of tiles of one example."""
        columns, offsets = (shape.x[0] * shape.offsets, 1) if self.patch else (shape.x[0], shape.offsets)
        return _tiles(shape.g[0], self.outputs) * _tiles(columns, self.columns) * (offsets // self.offsets)

    def cost(self, shape: ConvShape) -> float:
        """Multiply-adds of one example."""
        depth = _tiles(shape.positions, self.positions) * self.positions
        return self.count(shape) * self.outputs * self.columns * self.offsets * depth * _idle(self.outputs)


class GramTile(NamedTuple):
    """A tile of the Gram form: pixels x pixels of both Gram matrices.

    Args:
        pixels: rows and columns of the tile.
        channels: channels in one step of the sum.
        rows_in_x: whether vertical offsets of the kernel are summed over in the Gram matrix of x, else in that of g.
        columns_in_x: the same for the horizontal offsets.
        warps: warps of a program.
        stages: depth of the software pipeline.
    """

    pixels: int
    channels: int
    rows_in_x: bool
    columns_in_x: bool
    warps: int
    stages: int

    def positions(self, shape: ConvShape) -> int:
        """The number of rows of the Gram matrices."""
        return (shape.g if self.rows_in_x else shape.x)[1] * (shape.g if self.columns_in_x else shape.x)[2]

    def count(self, shape: ConvShape) -> int:
        """The number of tiles of one example, on and above the diagonal."""
        side = _tiles(self.positions(shape), self.pixels)
        return side * (side + 1) // 2

    def cost(self, shape: ConvShape) -> float:
        """Multiply-adds of one example, in those of the direct form."""
        kh, kw = shape.kernel
        of_x = (kh if self.rows_in_x else 1) * (kw if self.columns_in_x else 1)
        depth = sum(
            offsets * _tiles(channels, self.channels) * self.channels
            for offsets, channels in ((of_x, shape.x[0]), (kh * kw // of_x, shape.g[0]))
        )
        return GRAM_PRODUCT * self.count(shape) * self.pixels**2 * depth * _idle(self.pixels)


def direct_tile(shape: ConvShape) -> DirectTile:
    """The largest tile without register spills on sm_80 and sm_90, where float32 operands are split into parts."""
    patch = shape.x[0] < PATCH_CHANNELS and shape.offsets > 1
    offsets = 3 if shape.offsets % 3 == 0 and not patch else 1
    outputs = _fit(shape.g[0], 128 if shape.half else 64)
    columns = _fit(shape.x[0] * (shape.offsets if patch else 1), (64 if offsets == 3 else 128) if shape.half else 32)
    warps = 8 if outputs * columns * offsets > 64 * 64 * 3 else 4
    positions = _fit(shape.positions, 64 if shape.half and warps == 4 else 32)
    return DirectTile(outputs, columns, positions, offsets, patch, warps, stages=3)


def gram_tile(shape: ConvShape) -> GramTile:
    """The tile of least cost."""
    most = max(shape.x[0], shape.g[0])
    tiles = []
    for (pixels, depth, warps), rows, columns in itertools.product(GRAM_TILES, (True, False), (True, False)):
        channels = _fit(most, depth if shape.half else 32)
        tiles.append(GramTile(pixels, channels, rows, columns, warps, stages=3))
    return min(tiles, key=lambda tile: tile.cost(shape))


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def _fit(size: int, most: int) -> int:
    """The least power of two that is at least size, within limits."""
    return min(max(1 << (size - 1).bit_length(), MIN_SIDE), most)


def _idle(rows: int) -> float:
    """The factor by which a product is slower in tiles that are too small for tensor cores."""
    return max(1.0, FULL_ROWS / rows)
