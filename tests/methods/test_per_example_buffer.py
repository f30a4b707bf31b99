"""What is kept per image: found by identity, seen through augmentation, written back, saved."""

import io

import pytest
import torch
from torch.nn import functional as F

from pyengm.data import CropFlip
from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.methods.base import DatasetSpec
from pyengm.methods.per_example_buffer import CHUNK, PerExampleBuffer
from pyengm.ops import Key, Purpose, philox_uniform

INDEX = torch.tensor([40, 7, 1000, 3, 12])
SHAPE = (2, 6, 8)


def examples(index=INDEX, shape=SHAPE, padding=2):
    return DatasetSpec(index, shape, padding, seed=9)


def transform_of(index, shape=SHAPE, padding=2, epoch=0):
    return CropFlip.draw(index, shape, padding, seed=1, epoch=epoch)


def uniform(like, key):
    draws = philox_uniform(key.index, like.shape[1:], seed=key.seed, purpose=Purpose.STORE, epoch=key.epoch)
    return draws.to(like.dtype)


def test_values_belong_to_the_image():
    buffer = PerExampleBuffer(examples())
    assert buffer.values.shape == (5, 2, 10, 12)
    assert not buffer.values.any()
    buffer.initialize(4, uniform)
    batch = torch.tensor([3, 40, 1000])
    kept = buffer.values[buffer.rows(batch)]
    assert kept.equal(uniform(kept, Key(9, 4, batch)))
    buffer.initialize(5, uniform)
    assert not buffer.values[buffer.rows(batch)].equal(kept)


def test_filling_in_parts_is_filling_at_once():
    index = torch.arange(2 * CHUNK + 3)
    buffer = PerExampleBuffer(examples(index, (1, 2, 2), 0), dtype=torch.float16)
    buffer.initialize(0, uniform)
    assert buffer.values.dtype == torch.float16
    assert buffer.values.equal(uniform(buffer.values.float(), Key(9, 0, index)).half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_reads_and_writes_go_through_the_window(dtype):
    buffer = PerExampleBuffer(examples(), dtype=dtype)
    buffer.initialize(0, uniform)
    expected = buffer.values.clone()
    for epoch in range(6):
        batch = INDEX[torch.randperm(5, generator=torch.Generator().manual_seed(epoch))[:3]]
        transform, rows = transform_of(batch, epoch=epoch), buffer.rows(batch)
        windows = buffer.read(rows, transform, torch.zeros(3, dtype=torch.float64))
        assert windows.dtype == torch.float64
        new = torch.rand(3, *SHAPE, dtype=torch.float64)
        buffer.write(rows, new, transform)
        for i, (image, corner) in enumerate(
            zip(batch, zip(transform.rows, transform.cols, transform.flip, strict=True), strict=True)
        ):
            row, col, flip = corner
            position = INDEX.tolist().index(image), slice(None), slice(row, row + 6), slice(col, col + 8)
            assert windows[i].equal((expected[position].flip(2) if flip else expected[position]).double())
            expected[position] = (new[i].flip(2) if flip else new[i]).to(dtype)
        assert buffer.values.equal(expected)


def test_without_augmentation_the_window_is_the_middle():
    buffer = PerExampleBuffer(examples())
    rows, new = buffer.rows(INDEX[:2]), torch.rand(2, *SHAPE)
    buffer.write(rows, new, None)
    assert buffer.values.equal(F.pad(torch.cat([new, torch.zeros(3, *SHAPE)]), (2, 2, 2, 2)))
    assert buffer.read(rows, None, new).equal(new)


def test_windows_are_not_the_memory_of_the_buffer():
    buffer = PerExampleBuffer(examples(padding=0))
    buffer.read(buffer.rows(INDEX), None, buffer.values).add_(1)
    assert not buffer.values.any()


def test_writing_never_keeps_a_graph():
    buffer = PerExampleBuffer(examples())
    buffer.write(buffer.rows(INDEX), torch.ones(5, *SHAPE, requires_grad=True) * 2, None)
    assert not buffer.values.requires_grad


def smooth(n=5, size=(1, 64, 64), seed=0):
    noise = torch.randn(n, size[0], 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size[1:], mode="bicubic")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_coarse_buffer_gives_back_about_what_was_written(dtype):
    shape = (1, 64, 64)
    buffer = PerExampleBuffer(examples(shape=shape, padding=8), dtype=dtype, resolution=20)
    assert buffer.values.shape == (5, 1, 20, 20)
    transform, rows = transform_of(INDEX, shape, 8), buffer.rows(INDEX)
    for seed in range(2):  # into the zeros, then over what is there
        new = smooth(seed=seed)
        buffer.write(rows, new, transform)
        inside = (..., slice(4, -4), slice(4, -4))
        error = (buffer.read(rows, transform, new) - new)[inside].norm() / new[inside].norm()
        assert error < 0.15  # four pixels to a number, waves from 26 pixels on: a mean loses up to (pi 4 / 26)^2 / 6
    # The same region of the image, seen through another window.
    other = transform_of(INDEX, shape, 8, epoch=1)
    canvas = transform.scatter_window(new, torch.full((5, 1, 80, 80), torch.nan))
    expected, seen = (
        other.gather_window(canvas),
        other.gather_window(transform.scatter_window(torch.ones_like(new), torch.zeros(5, 1, 80, 80))),
    )
    deep = F.max_pool2d(1 - F.pad(seen, (1, 1, 1, 1)), 9, 1, 4)[..., 1:-1, 1:-1] == 0
    read = buffer.read(rows, other, new)
    assert deep.float().mean() > 0.5
    assert (read - expected)[deep].norm() < 0.15 * expected[deep].norm()


def test_a_coarse_buffer_changes_only_under_the_window():
    buffer = PerExampleBuffer(examples(shape=(1, 64, 64), padding=8), resolution=20)
    buffer.initialize(0, uniform)
    before, rows = buffer.values.clone(), buffer.rows(INDEX)
    corner = torch.full((5,), 16)
    transform = CropFlip(corner, corner, torch.tensor([True, False] * 2 + [True]), 8)
    buffer.write(rows, buffer.read(rows, transform, before), transform)
    torch.testing.assert_close(buffer.values, before, rtol=0, atol=1e-6)  # no change, whatever was lost on the way
    buffer.write(rows, buffer.read(rows, transform, before) + 0.5, transform)
    change = buffer.values - before
    expected = torch.zeros_like(change)
    expected[..., 4:, 4:] = 0.5  # a value is for 4 x 4 pixels, of which the window leaves out 16 rows and columns
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)


def test_values_stay_within_the_bound():
    for resolution in (None, 4):
        buffer = PerExampleBuffer(examples(), resolution=resolution, bound=0.1)
        for _ in range(3):
            buffer.write(buffer.rows(INDEX), torch.randn(5, *SHAPE), None)
            assert 0.09 < buffer.values.abs().max() <= 0.1


def test_state_survives_a_file():
    buffer, other = PerExampleBuffer(examples()), PerExampleBuffer(examples())
    buffer.initialize(3, uniform)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    memory = other.values.data_ptr()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.values.equal(buffer.values)
    assert other.values.data_ptr() == memory
    with pytest.raises(CheckpointError, match=r"\(2, 10, 12\) per image, the saved one \(2, 6, 8\)"):
        buffer.load_state_dict(PerExampleBuffer(examples(padding=0)).state_dict())


def test_errors():
    buffer = PerExampleBuffer(examples())
    with pytest.raises(DataError, match=r"2 of 3 images .* \(first: identity 2000\)"):
        buffer.rows(torch.tensor([7, 2000, 0]))
    with pytest.raises(DataError, match="padded by 2 pixels, augmentation pads by 1"):
        buffer.read(buffer.rows(INDEX), transform_of(INDEX, padding=1), buffer.values)
    with pytest.raises(DataError, match="more than once"):
        PerExampleBuffer(examples(torch.tensor([1, 2, 1])))
    for resolution in (0, 11):
        with pytest.raises(ConfigError, match=f"resolution is {resolution}; expected 1 to 10"):
            PerExampleBuffer(examples(), resolution=resolution)
