"""Squared norms of per-example weight gradients of a convolution: a matrix product per example, then its squares.

The gradient of example i, weight row o, channel c and offset d of the kernel is sum_t g[i, o, t] x[i, c, pixel(t, d)],
t the output pixels. A program computes a tile of it, (outputs, columns) at one offset or at three, and writes the sum
of its squares; the tiles of an example are then summed. So results depend neither on the batch nor on timing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyengm.kernels.conv_cost_model import DirectTile
from pyengm.kernels.conv_shape import ConvShape, Window, channels_innermost, strides
from pyengm.kernels.conv_tuning import best_direct_tile
from pyengm.kernels.launch import LaunchConfig, launch, sum_of_tiles


@triton.jit
def _square_and_store(acc, o, column, example, gradients,
                      CO: tl.constexpr, COLUMNS: tl.constexpr, STORE: tl.constexpr):  # fmt: skip
    """The squares of a tile of the gradient, acc (outputs, columns), which is zero outside the weight."""
    if STORE:
        inside = (o < CO)[:, None] & (column < COLUMNS)[None, :]
        index = example * (CO * COLUMNS) + (o[:, None] * COLUMNS + column[None, :])
        tl.store(gradients + index, acc, mask=inside)
    return acc * acc


@triton.jit
def conv_direct_sqnorm_kernel(
    x, g, out, gradients, tiles,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CO: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BO: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, OFFSETS: tl.constexpr, PATCH: tl.constexpr,
    STORE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out (n, tiles). A column of the gradient has the index offset * C + channel.

    PATCH: a tile has consecutive columns, of any offsets. STORE: the gradients are written too. WIDEN: operands are
    cast to float32 before the product.
    """
    COLUMNS: tl.constexpr = KH * KW * C
    T: tl.constexpr = HO * WO
    O_TILES: tl.constexpr = (CO + BO - 1) // BO
    C_TILES: tl.constexpr = ((COLUMNS if PATCH else C) + BC - 1) // BC
    pid = tl.program_id(0)
    example = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    o = tile % O_TILES * BO + tl.arange(0, BO)
    lane = tile // O_TILES % C_TILES * BC + tl.arange(0, BC)
    first = tile // (O_TILES * C_TILES) * OFFSETS
    if PATCH:
        channel, valid = (lane % C)[None, :], (lane < COLUMNS)[None, :]
    else:
        channel, valid = lane[None, :], (lane < C)[None, :]
    x += example * XN
    g += example * GN
    acc0 = tl.zeros((BO, BC), tl.float32)
    acc1 = tl.zeros((BO, BC), tl.float32)
    acc2 = tl.zeros((BO, BC), tl.float32)
    for start in range(0, T, BT):
        t = start + tl.arange(0, BT)
        row, column = t // WO, t % WO
        g_t = tl.load(g + (row * GH + column * GW)[:, None] + (o * GC)[None, :],
                      mask=(t < T)[:, None] & (o < CO)[None, :], other=0.0)  # fmt: skip
        if WIDEN:
            g_t = g_t.to(tl.float32)
        left = tl.trans(g_t)
        for k in tl.static_range(OFFSETS):  # pyright: ignore[reportGeneralTypeIssues]  # Triton unrolls it
            offset = (lane // C)[None, :] if PATCH else first + k
            y = (row * SH - PH)[:, None] + offset // KW * DH
            z = (column * SW - PW)[:, None] + offset % KW * DW
            covered = (t < T)[:, None] & (y >= 0) & (y < H) & (z >= 0) & (z < W)
            # Neighbouring offsets read nearly the same pixels, which the first cache then holds.
            x_t = tl.load(x + (y * XH + z * XW) + channel * XC, mask=covered & valid, other=0.0, cache_modifier=".ca")
            if WIDEN:
                x_t = x_t.to(tl.float32)
            if k == 0:
                acc0 = tl.dot(left, x_t, acc0, input_precision=PRECISION)
            elif k == 1:
                acc1 = tl.dot(left, x_t, acc1, input_precision=PRECISION)
            else:
                acc2 = tl.dot(left, x_t, acc2, input_precision=PRECISION)
    # A column beyond the channels of its offset is not a column of the next offset.
    inside = lane if PATCH else tl.where(lane < C, lane, COLUMNS)
    squares = _square_and_store(acc0, o, first * C + inside, example, gradients, CO, COLUMNS, STORE)
    if OFFSETS == 3:
        squares += _square_and_store(acc1, o, (first + 1) * C + inside, example, gradients, CO, COLUMNS, STORE)
        squares += _square_and_store(acc2, o, (first + 2) * C + inside, example, gradients, CO, COLUMNS, STORE)
    tl.store(out + pid, tl.sum(squares))


def prepare(
    x: Tensor,
    g: Tensor,
    window: Window,
    tile: DirectTile | None = None,
    precision: str = "tf32x3",
    store: bool = False,
) -> LaunchConfig:
    """The launch of the kernel on these operands; arguments as of `conv_direct_sqnorm`, store: STORE."""
    shape = ConvShape.of(x, g, *window)
    tile = tile or best_direct_tile(shape)
    constants = {"BO": tile.outputs, "BC": tile.columns, "BT": tile.positions, "OFFSETS": tile.offsets}
    constants |= {"PATCH": tile.patch, "STORE": store, "PRECISION": precision}
    constants |= strides(x, g) | shape.constants()
    return LaunchConfig(conv_direct_sqnorm_kernel, tile.count(shape), constants, tile.warps, tile.stages)


def conv_direct_sqnorm(
    x: Tensor,
    g: Tensor,
    window: Window,
    *,
    tile: DirectTile | None = None,
    precision: str = "tf32x3",
) -> Tensor:
    """Squared norms of the per-example weight gradients of a convolution, from the gradients themselves.

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
    launch(config, x, g, out, out)  # in place of a pointer that is not used
    return sum_of_tiles(out)


def conv_gradients(
    x: Tensor,
    g: Tensor,
    window: Window,
    *,
    tile: DirectTile | None = None,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor]:
    """The result of `conv_direct_sqnorm`, and the gradients themselves.

    Args:
        x: input (n, C, H, W), float32, bfloat16 or float16; copied unless it is channels_last.
        g: gradient in the output (n, O, Ho, Wo), in the type of x; copied unless it is channels_last.
        window: kernel, stride, padding and dilation, two integers each.
        tile: None: the one that `conv_tuning` chooses.
        precision: of products of float32 operands: "tf32x3" (nearly float32), "tf32" (ten bits) or "ieee". All else is
            in float32.

    Returns:
        Squared norms (n,) and gradients (n, O, C, kh, kw) in the memory format (n, O, kh, kw, C), both float32.
    """
    n, (kh, kw) = len(x), window[0]
    x, g = channels_innermost(x), channels_innermost(g)
    config = prepare(x, g, window, tile, precision, store=True)
    out = torch.empty(n, config.tiles, dtype=torch.float32, device=x.device)
    gradients = out.new_empty(n, g.shape[1], kh, kw, x.shape[1])
    launch(config, x, g, out, gradients)
    return sum_of_tiles(out), gradients.permute(0, 1, 4, 2, 3)
