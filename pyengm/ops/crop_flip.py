"""Images of a batch, shifted, flipped and as floats: one read of bytes, one write of float32."""

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
    numbers = {"rows": rows, "cols": cols} | ({} if positions is None else {"positions": positions})
    for name, t, dtype in (*((name, t, torch.int64) for name, t in numbers.items()), ("flip", flip, torch.bool)):
        if t.shape != (n,) or t.dtype != dtype or t.device != images.device:
            expected = f"{name} of shape ({n},) in {dtype} on {images.device}"
            fail(NAME, expected, (tuple(t.shape), t.dtype, t.device))
    if not 0 <= padding < 2**31:
        fail(NAME, "a padding of at least 0", padding)
    if images[:1].numel() >= 2**31:
        fail(NAME, "images of less than 2**31 numbers", tuple(images.shape))


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
    """Images padded with 0, cut to their old size, perhaps flipped, and divided by 255: float32 in [0, 1].

    images: (N, C, H, W) uint8. positions: (n,) int64, which of them, or None for all in their order.
    rows, cols: (n,) int64, where the upper left corner of the window lies on an image padded by `padding` pixels on
    all sides; flip: (n,) bool. channels_last: the memory format of the result.
    backend: None (by device), "reference", "cpu" or "cuda".
    Returns (n, C, H, W), bit for bit x / 255. Raises ValueError on shapes, types or devices that do not fit and, on a
    CPU, on a position that does not exist; on CUDA, where nobody can look, such an image is nan.
    """
    return _op(images, positions, rows, cols, flip, padding, channels_last, backend=backend)
