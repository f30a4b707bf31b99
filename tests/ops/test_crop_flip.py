"""Crop and flip in one pass against a loop over images, and the contract of the op."""

import math

import pytest
import torch
from torch import Tensor

from pyengm.data import CropFlip, to_float
from pyengm.ops import available_backends, crop_flip
from pyengm.ops._register import CPU_MODULE

# (C, H, W), padding: rows of whole vectors, of parts of them, of one value, of more values than a block writes.
SHAPES = [((3, 32, 32), 4), ((1, 8, 8), 1), ((2, 5, 7), 4), ((3, 6, 4), 0), ((4, 3, 1), 0), ((3, 5, 3000), 2)]
LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


def make_images(n: int, shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8).to(device)


def loop(images: Tensor, positions: Tensor, transform: CropFlip) -> Tensor:
    """One image at a time: pad, cut, flip, divide."""
    p, (h, w) = transform.padding, images.shape[2:]
    out = []
    for i, position in enumerate(positions.tolist()):
        row, col = int(transform.rows[i]), int(transform.cols[i])
        window = torch.nn.functional.pad(images[position], (p, p, p, p))[:, row : row + h, col : col + w]
        out.append((window.flip(2) if transform.flip[i] else window).double() / 255)
    return torch.stack(out).float()  # double has enough digits to round every n / 255 to float


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "padding"), SHAPES)
def test_equals_the_loop(any_backend, device, shape, padding, channels_last):
    images = make_images(13, shape)
    positions = torch.arange(29) * 5 % 13
    corner = torch.arange(29) % (2 * padding + 1)
    transform = CropFlip(corner, corner.flip(0), torch.arange(29) % 3 > 0, padding)
    window = [t.to(device) for t in (transform.rows, transform.cols, transform.flip)]
    got = crop_flip(
        images.to(device),
        *window,
        padding,
        positions=positions.to(device),
        channels_last=channels_last,
        backend=any_backend,
    )
    assert got.is_contiguous(memory_format=LAYOUTS[channels_last])
    assert got.dtype == torch.float32
    assert torch.equal(got.cpu(), loop(images, positions, transform))


def test_every_value_is_divided_exactly(any_backend, device):
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    zero = torch.zeros(1, dtype=torch.int64)
    window = [t.to(device) for t in (zero, zero, zero > 0)]
    got = crop_flip(values.to(device), *window, 0, backend=any_backend)
    assert torch.equal(got.cpu(), to_float(values))
    assert torch.equal(got.cpu().double(), (torch.arange(256).double() / 255).float().double().view_as(values))


@pytest.mark.parametrize("memory_format", LAYOUTS.values())
def test_crops_that_are_drawn(any_backend, device, memory_format):
    images, index = make_images(50, (3, 16, 12), device), torch.arange(50, device=device)
    transform = CropFlip.draw(index, (3, 16, 12), 3, seed=2, epoch=1)
    expected = loop(images.cpu(), index.cpu(), transform).to(device).contiguous(memory_format=memory_format)
    window = (transform.rows, transform.cols, transform.flip, 3)
    last = memory_format is torch.channels_last
    assert torch.equal(crop_flip(images, *window, channels_last=last, backend=any_backend), expected)
    assert torch.equal(transform.to_float(images, memory_format=memory_format), expected)
    backwards = CropFlip(*(t.flip(0) for t in (transform.rows, transform.cols, transform.flip)), 3)
    assert torch.equal(backwards.to_float(images, index.flip(0), memory_format=memory_format), expected.flip(0))


def test_windows_beyond_the_image_are_empty(any_backend, device):
    """No offset reads memory outside of the image."""
    images = torch.full((9, 2, 4, 5), 255, dtype=torch.uint8, device=device)
    far = torch.tensor([0, 1, 4, 8, 9, 10, 1000, -1000, 2**40], device=images.device)
    flip = torch.arange(9, device=images.device) % 2 > 0
    got = crop_flip(images, far, far.flip(0), flip, 4, backend=any_backend)
    down, right = far - 4, far.flip(0) - 4
    seen = (4 - down.abs()).clamp(min=0) * (5 - right.abs()).clamp(min=0)
    assert torch.equal(got.sum((1, 2, 3)).long(), 2 * seen)


def test_other_strides_and_no_images(any_backend, device):
    images = make_images(6, (3, 4, 8), device)
    offsets = torch.tensor([0, 9, 2, 9, 1, 9, 1, 9], device=images.device)[::2]
    flipped = torch.tensor([True, False] * 4, device=images.device)[::2]
    expected = crop_flip(images, offsets.clone(), offsets.clone(), flipped.clone(), 1, positions=offsets.clone())
    for memory in (images.to(memory_format=torch.channels_last), images.mT.contiguous().mT):
        got = crop_flip(memory, offsets, offsets, flipped, 1, positions=offsets, backend=any_backend)
        assert torch.equal(got, expected)
    none = offsets[:0]
    assert crop_flip(images, none, none, none > 0, 1, positions=none, backend=any_backend).shape == (0, 3, 4, 8)


@pytest.mark.parametrize("position", [-1, 6, 2**40])
def test_a_position_that_does_not_exist(position):
    images, offsets = make_images(6, (3, 4, 8)), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="positions from 0 to 5"):
        crop_flip(images, offsets, offsets, offsets > 0, 1, positions=torch.tensor([0, position]))


@pytest.mark.gpu
@pytest.mark.parametrize("position", [-1, 6, 2**40])
def test_a_position_that_does_not_exist_is_nan_on_cuda(position):
    images, offsets = make_images(6, (3, 4, 8), "cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    got = crop_flip(images, offsets, offsets, offsets > 0, 1, positions=torch.tensor([0, position], device="cuda"))
    assert got.isnan().flatten(1).any(1).tolist() == [False, True]
    assert got[1].isnan().all()


@pytest.mark.skipif("cpu" not in available_backends(), reason="not built")
@pytest.mark.parametrize("channels_last", [False, True])
def test_overwrites_what_its_memory_held(channels_last):
    images, corner = make_images(3, (3, 5, 7)), torch.tensor([0, 1, 4])
    positions, flip = torch.tensor([2, 0, 1]), torch.tensor([False, True, True])
    out = torch.full((3 * 3 * 5 * 7 + 1,), math.nan)
    addresses = (t.data_ptr() for t in (out, images, positions, corner, corner, flip))
    CPU_MODULE.crop_flip(*addresses, 3, 3, 3, 5, 7, 2, channels_last)
    assert out[:-1].isfinite().all()
    assert out[-1].isnan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, r"images of shape \(N, C, H, W\) in uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"images of shape \(N, C, H, W\) in uint8"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, r"rows of shape \(2,\) in torch.int64"),
        ({"cols": torch.zeros(2)}, r"cols of shape \(2,\) in torch.int64"),
        ({"flip": torch.zeros(2)}, r"flip of shape \(2,\) in torch.bool"),
        ({"positions": torch.zeros(1, 2, dtype=torch.int64)}, r"positions of shape \(2,\)"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, r"rows of shape \(3,\)"),
        ({"rows": torch.zeros(2, dtype=torch.int64, device="meta")}, ".* on cpu"),
        ({"padding": -1}, "a padding of at least 0"),
    ],
)
def test_bad_arguments(change, message):
    offsets = torch.zeros(2, dtype=torch.int64)
    arguments = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "rows": offsets,
        "cols": offsets,
        "flip": offsets > 0,
        "padding": 1,
    }
    with pytest.raises(ValueError, match=f"crop_flip: expected {message}"):
        crop_flip(**arguments | change)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    offsets = torch.tensor([0, 1, 2])
    op = torch.ops.pyengm.crop_flip.default
    for positions in (None, offsets):
        torch.library.opcheck(
            op, (make_images(3, (2, 4, 5)), positions, offsets, offsets, offsets > 1, 1, channels_last)
        )
