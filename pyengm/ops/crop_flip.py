"""Images of a batch, cropped, flipped and as float32: one read of bytes, one write of floats."""

import torch
from torch import Tensor

from pyengm.ops import reference
from pyengm.ops._memory_format import address
from pyengm.ops._register import Op, fail

NAME = "crop_flip"


def _check(images, positions, rows, cols, flip, padding, channels_last) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        fail(NAME, "images of shape (N, C, H, W) in uint8", (tuple(images.shape), images.dtype))
    n = images.shape[0] if positions is None else positions.numel()
    integers = {"rows": rows, "cols": cols} | ({} if positions is None else {"positions": positions})
    for name, t, dtype in (*((name, t, torch.int64) for name, t in integers.items()), ("flip", flip, torch.bool)):
        if t.shape != (n,) or t.dtype != dtype or t.device != images.device:
            expected = f"{name} of shape ({n},) in {dtype} on {images.device}"
            fail(NAME, expected, (tuple(t.shape), t.dtype, t.device))
    if not 0 <= padding < 2**31:
        fail(NAME, "a padding of at least 0", padding)
    if images[:1].numel() >= 2**31:
        fail(NAME, "images of less than 2**31 values", tuple(images.shape))


def _empty(images, positions, rows, cols, flip, padding, channels_last) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=layout)


def _native(call, images, positions, rows, cols, flip, padding, channels_last) -> Tensor:
    if images.device.type == "cpu" and positions is not None and len(positions):
        least, most = (int(t) for t in positions.aminmax())
        if least < 0 or most >= len(images):
            fail(NAME, f"positions from 0 to {len(images) - 1}", (least, most))
    out = _empty(images, positions, rows, cols, flip, padding, channels_last)
    images, rows, cols, flip = (t.contiguous() for t in (images, rows, cols, flip))
    positions = positions if positions is None else positions.contiguous()
    if out.numel():
        addresses = map(address, (out, images, positions, rows, cols, flip))
        call(NAME, *addresses, len(out), *images.shape, padding, channels_last)
    return out


_op = Op(
    "crop_flip(Tensor images, Tensor? positions, Tensor rows, Tensor cols, Tensor flip, SymInt padding, "
    "bool channels_last) -> Tensor",
    check=_check,
    fake=_empty,
    reference=reference.crop_flip,
    native=_native,
)


def crop_flip(
    images: Tensor,
    rows: Tensor,
    cols: Tensor,
    flip: Tensor,
    padding: int,
    *,
    positions: Tensor | None = None,
    channels_last: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Images padded with 0, cropped to their old size, flipped where `flip` is True, and divided by 255.

    Args:
        images: (N, C, H, W) uint8.
        rows: (n,) int64, top edge of the window on an image that is padded by `padding` pixels on all sides.
        cols: (n,) int64, left edge of the window, likewise.
        flip: (n,) bool, whether the image is flipped horizontally.
        padding: pixels on each side, at least 0.
        positions: (n,) int64, indices into `images`, or None for all of them in their order.
        channels_last: whether the result is channels_last, else it is contiguous.
        backend: None (by device), "reference", "cpu" or "cuda".

    Returns:
        (n, C, H, W) float32 in [0, 1], bit for bit x / 255. On CUDA an image whose position does not exist is nan,
        because a check would have to wait for the device.

    Raises:
        ValueError: a shape, type or device is not as above, or, on a CPU, a position does not exist.
    """
    return _op(images, positions, rows, cols, flip, padding, channels_last, backend=backend)
