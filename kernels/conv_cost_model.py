"""The cheaper form of a per-example gradient norm on a GPU, and the tiles to take it in; Triton is not needed here.

Costs are multiply-adds of one example on tensor cores, with all that tiles add at their edges: a model, from which
`conv_tuning` departs where tiles were timed.
"""

import itertools
from typing import NamedTuple

from pyengm.kernels.conv_shape import ConvShape

GRAM_PRODUCT = 1.25  # cost of a product of the Gram form, in products of the direct form: it reads more for each
LEAST = 16  # rows, columns and depth that tensor cores take
FULL = 64  # rows that keep them busy
GRAM_TILES = ((16, 128, 2), (32, 128, 2), (64, 64, 4))  # pixels, channels of 16-bit operands, warps
PATCH_CHANNELS = 16  # with fewer channels a tile spans the offsets of the kernel


class DirectTile(NamedTuple):
    """outputs x columns of the gradient at `offsets` offsets of the kernel, summed over positions in steps.

    patch: columns run through offsets and channels; otherwise they are channels.
    """

    outputs: int
    columns: int
    positions: int
    offsets: int
    patch: bool
    warps: int
    stages: int

    def count(self, shape: ConvShape) -> int:
        columns, offsets = (shape.x[0] * shape.offsets, 1) if self.patch else (shape.x[0], shape.offsets)
        return _tiles(shape.g[0], self.outputs) * _tiles(columns, self.columns) * (offsets // self.offsets)

    def cost(self, shape: ConvShape) -> float:
        depth = _tiles(shape.positions, self.positions) * self.positions
        return self.count(shape) * self.outputs * self.columns * self.offsets * depth * _idle(self.outputs)


class GramTile(NamedTuple):
    """pixels x pixels of both Gram matrices, summed over channels in steps.

    rows_in_x, columns_in_x: this axis of the kernel's offsets is summed over in the Gram matrix of x, else in g's.
    """

    pixels: int
    channels: int
    rows_in_x: bool
    columns_in_x: bool
    warps: int
    stages: int

    def places(self, shape: ConvShape) -> int:
        return (shape.g if self.rows_in_x else shape.x)[1] * (shape.g if self.columns_in_x else shape.x)[2]

    def count(self, shape: ConvShape) -> int:
        side = _tiles(self.places(shape), self.pixels)
        return side * (side + 1) // 2

    def cost(self, shape: ConvShape) -> float:
        kh, kw = shape.kernel
        of_x = (kh if self.rows_in_x else 1) * (kw if self.columns_in_x else 1)
        depth = sum(
            offsets * _tiles(channels, self.channels) * self.channels
            for offsets, channels in ((of_x, shape.x[0]), (kh * kw // of_x, shape.g[0]))
        )
        return GRAM_PRODUCT * self.count(shape) * self.pixels**2 * depth * _idle(self.pixels)


def direct_tile(shape: ConvShape) -> DirectTile:
    """As large as registers allow without spills on sm_80 and sm_90; float32 operands are split in parts there."""
    patch = shape.x[0] < PATCH_CHANNELS and shape.offsets > 1
    offsets = 3 if shape.offsets % 3 == 0 and not patch else 1
    outputs = _fit(shape.g[0], 128 if shape.half else 64)
    columns = _fit(shape.x[0] * (shape.offsets if patch else 1), (64 if offsets == 3 else 128) if shape.half else 32)
    warps = 8 if outputs * columns * offsets > 64 * 64 * 3 else 4
    positions = _fit(shape.positions, 64 if shape.half and warps == 4 else 32)
    return DirectTile(outputs, columns, positions, offsets, patch, warps, stages=3)


def gram_tile(shape: ConvShape) -> GramTile:
    most = max(shape.x[0], shape.g[0])
    tiles = []
    for (pixels, depth, warps), rows, columns in itertools.product(GRAM_TILES, (True, False), (True, False)):
        channels = _fit(most, depth if shape.half else 32)
        tiles.append(GramTile(pixels, channels, rows, columns, warps, stages=3))
    return min(tiles, key=lambda tile: tile.cost(shape))


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def _fit(size: int, most: int) -> int:
    """The least power of two that holds size, within limits."""
    return min(max(1 << (size - 1).bit_length(), LEAST), most)


def _idle(rows: int) -> float:
    """How many times longer a product takes in tiles too small for the tensor cores."""
    return max(1.0, FULL / rows)
