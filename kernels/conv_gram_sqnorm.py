"""Squared norms of per-example weight gradients of a convolution from Gram matrices that are never stored.

With g_t the output gradient at output pixel t and x_p the input at pixel p, the squared norm is

    sum_{t,s} <g_t, g_s> sum_d <x_{pixel(t) + d}, x_{pixel(s) + d}>      over the offsets d = (dy, dx) of the kernel.

Both pixels of a pair move by the same d, so the sum over either axis of d may be taken over x or over g. With the sum
over dx taken over g, and pairs p, q of positions (output row, input column),

    sum_{p,q} (sum_dy <x_{p + dy}, x_{q + dy}>) (sum_dx <g_{p - dx}, g_{q - dx}>)

takes kh C + kw O products per pair instead of kh kw C + O. A program computes both factors for a tile of pairs, one
matrix product each, and writes the sum of their products. Pairs are symmetric: of the tiles off the diagonal only those
above it are computed, and they count twice.
"""

# In the stubs of Triton 1 is no constexpr, and constexpr has no __rmod__:
# pyright: reportAssignmentType=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyengm.kernels.conv_cost_model import GramTile
from pyengm.kernels.conv_shape import ConvShape, Window, channels_innermost, strides
from pyengm.kernels.conv_tuning import best_gram_tile
from pyengm.kernels.launch import LaunchConfig, launch, sum_of_tiles


@triton.jit
def _pixels(image, y, z, valid, channel,
            STRIDE_C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
            C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
            STEP_H: tl.constexpr, STEP_W: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """The pixels (y / STEP_H, z / STEP_W) of an image, (positions, channels); zero where there is none."""
    valid = valid & (y >= 0) & (y < H * STEP_H) & (z >= 0) & (z < W * STEP_W)
    if STEP_H > 1:
        valid = valid & (y % STEP_H == 0)
        y = y // STEP_H
    if STEP_W > 1:
        valid = valid & (z % STEP_W == 0)
        z = z // STEP_W
    # Neighbouring offsets read nearly the same pixels: those stay in the first cache.
    found = tl.load(image + (y * STRIDE_H + z * STRIDE_W)[:, None] + (channel * STRIDE_C)[None, :],
                    mask=valid[:, None] & (channel < C)[None, :], other=0.0, cache_modifier=".ca")  # fmt: skip
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def conv_gram_sqnorm_kernel(
    x, g, out, tiles,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CO: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ROWS_IN_X: tl.constexpr, COLUMNS_IN_X: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out (n, tiles), the tiles on and above the diagonal. WIDEN: operands are cast to float32 before the products."""
    A_H: tl.constexpr = HO if ROWS_IN_X else H  # positions: A_H rows of A_W
    A_W: tl.constexpr = WO if COLUMNS_IN_X else W
    POSITIONS: tl.constexpr = A_H * A_W
    SIDE: tl.constexpr = (POSITIONS + BP - 1) // BP
    X_COLUMNS: tl.constexpr = KW if COLUMNS_IN_X else 1  # offsets within x and within g
    X_OFFSETS: tl.constexpr = (KH if ROWS_IN_X else 1) * X_COLUMNS
    G_COLUMNS: tl.constexpr = 1 if COLUMNS_IN_X else KW
    G_OFFSETS: tl.constexpr = (1 if ROWS_IN_X else KH) * G_COLUMNS
    X_STEP_H: tl.constexpr = SH if ROWS_IN_X else 1
    X_STEP_W: tl.constexpr = SW if COLUMNS_IN_X else 1
    G_STEP_H: tl.constexpr = 1 if ROWS_IN_X else SH
    G_STEP_W: tl.constexpr = 1 if COLUMNS_IN_X else SW

    pid = tl.program_id(0)
    example = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    # Rows i and SIDE - 1 - i of the triangle have SIDE + 1 tiles together: they are one row of a rectangle.
    i, j = tile // (SIDE + 1), tile % (SIDE + 1)
    upper = j < SIDE - i
    tile_p = tl.where(upper, i, SIDE - 1 - i)
    tile_q = tl.where(upper, i + j, j - 1)
    p = tile_p * BP + tl.arange(0, BP)
    q = tile_q * BP + tl.arange(0, BP)
    p_y, p_z, q_y, q_z = p // A_W, p % A_W, q // A_W, q % A_W
    x += example * XN
    g += example * GN
    lane = tl.arange(0, BC)

    of_g = tl.zeros((BP, BP), tl.float32)
    for k in range(((CO + BC - 1) // BC) * G_OFFSETS):  # offsets are innermost
        channel, offset = k // G_OFFSETS * BC + lane, k % G_OFFSETS
        y = 0 if ROWS_IN_X else PH - offset // G_COLUMNS * DH
        z = 0 if COLUMNS_IN_X else PW - offset % G_COLUMNS * DW
        left = _pixels(g, p_y + y, p_z + z, p < POSITIONS, channel, GC, GH, GW, CO, HO, WO, G_STEP_H, G_STEP_W, WIDEN)
        right = left
        if SIDE > 1:
            right = _pixels(
                g, q_y + y, q_z + z, q < POSITIONS, channel, GC, GH, GW, CO, HO, WO, G_STEP_H, G_STEP_W, WIDEN
            )
        of_g = tl.dot(left, tl.trans(right), of_g, input_precision=PRECISION)

    of_x = tl.zeros((BP, BP), tl.float32)
    for k in range(((C + BC - 1) // BC) * X_OFFSETS):
        channel, offset = k // X_OFFSETS * BC + lane, k % X_OFFSETS
        y = offset // X_COLUMNS * DH - PH if ROWS_IN_X else 0
        z = offset % X_COLUMNS * DW - PW if COLUMNS_IN_X else 0
        left = _pixels(
            x, p_y * X_STEP_H + y, p_z * X_STEP_W + z, p < POSITIONS, channel, XC, XH, XW, C, H, W, 1, 1, WIDEN
        )
        right = left
        if SIDE > 1:
            right = _pixels(x, q_y * X_STEP_H + y, q_z * X_STEP_W + z, q < POSITIONS, channel,
                            XC, XH, XW, C, H, W, 1, 1, WIDEN)  # fmt: skip
        of_x = tl.dot(left, tl.trans(right), of_x, input_precision=PRECISION)

    total = tl.sum(of_g * of_x)
    tl.store(out + pid, tl.where(tile_p == tile_q, total, 2 * total))


def prepare(
    x: Tensor, g: Tensor, window: Window, tile: GramTile | None = None, precision: str = "tf32x3"
) -> LaunchConfig:
    """The launch of the kernel on these operands; arguments as of `conv_gram_sqnorm`."""
    shape = ConvShape.of(x, g, *window)
    tile = tile or best_gram_tile(shape)
    constants = {"BP": tile.pixels, "BC": tile.channels}
    constants |= {"ROWS_IN_X": tile.rows_in_x, "COLUMNS_IN_X": tile.columns_in_x, "PRECISION": precision}
    tiles = tile.count(shape)
    return LaunchConfig(
        conv_gram_sqnorm_kernel, tiles, strides(x, g) | shape.constants() | constants, tile.warps, tile.stages
    )


def conv_gram_sqnorm(
    x: Tensor, g: Tensor, window: Window, *, tile: GramTile | None = None, precision: str = "tf32x3"
) -> Tensor:
    """Squared norms of the per-example weight gradients of a convolution, from Gram matrices.

    Args:
        x: input (n, C, H, W), float32, bfloat16 or float16; copied unless it is channels_last.
        g: gradient in the output (n, O, Ho, Wo), in the type of x; copied unless it is channels_last.
        window: kernel, stride, padding and dilation, two integers each.
        tile: None: the one that `conv_tuning` chooses.
        precision: of products of float32 operands: "tf32x3" (nearly float32), "tf32" (ten bits) or "ieee". All else is
            in float32.

    Returns:
        (n,) float32.
    """
    x, g = channels_innermost(x), channels_innermost(g)
    config = prepare(x, g, window, tile, precision)
    out = torch.empty(len(x), config.tiles, dtype=torch.float32, device=x.device)
    launch(config, x, g, out)
    return sum_of_tiles(out).clamp(min=0)  # rounding may make a vanishing norm negative; nan is kept
