"""Crop and flip against a loop over single images and pixels."""

import pytest
import torch
from helpers.reference_crops import put_back, show

from pyengm.data import FLIP_ALLOWED, CropFlip
from pyengm.data.flip import may_flip
from pyengm.errors import DataError


def slow_apply(transform, images, fill):
    """One image at a time: pad, crop, flip."""
    p, (n, _, h, w) = transform.padding, images.shape
    out = torch.empty_like(images)
    for i in range(n):
        canvas = torch.full((images.shape[1], h + 2 * p, w + 2 * p), fill, dtype=images.dtype)
        canvas[:, p : p + h, p : p + w] = images[i]
        row, col = int(transform.rows[i]), int(transform.cols[i])
        window = canvas[:, row : row + h, col : col + w]
        out[i] = window.flip(2) if transform.flip[i] else window
    return out


def slow_invert(transform, images, out):
    """One image at a time: flip back, write to the padded canvas, crop its middle."""
    p, (n, _, h, w) = transform.padding, images.shape
    out = out.clone()
    for i in range(n):
        canvas = torch.zeros((images.shape[1], h + 2 * p, w + 2 * p), dtype=images.dtype)
        canvas[:, p : p + h, p : p + w] = out[i]
        row, col = int(transform.rows[i]), int(transform.cols[i])
        canvas[:, row : row + h, col : col + w] = images[i].flip(2) if transform.flip[i] else images[i]
        out[i] = canvas[:, p : p + h, p : p + w]
    return out


def make_images(n, shape, dtype):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return images if dtype is torch.uint8 else images.to(dtype) / 255


SHAPES = [((3, 32, 32), 4), ((1, 8, 8), 1), ((2, 5, 7), 4), ((3, 6, 4), 0)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 37])
@pytest.mark.parametrize(("shape", "padding"), SHAPES)
def test_windows_there_and_back_equal_the_loop(shape, padding, n, dtype):
    images = make_images(n, shape, dtype)
    transform = CropFlip.draw(torch.arange(n), shape, padding, seed=1, epoch=2)
    assert torch.equal(show(transform, images), slow_apply(transform, images, 0))
    assert torch.equal(show(transform, images, fill=1), slow_apply(transform, images, 1))
    before = make_images(n, shape, dtype).flip(0)
    out = before.clone()
    assert put_back(transform, images, out) is out
    assert torch.equal(out, slow_invert(transform, images, before))


@pytest.mark.parametrize(("shape", "padding"), SHAPES)
def test_every_corner_and_flip(shape, padding):
    side = torch.arange(2 * padding + 1)
    rows, cols, flip = torch.cartesian_prod(side, side, torch.arange(2)).unbind(1)
    transform = CropFlip(rows, cols, flip.bool(), padding)
    images = make_images(len(rows), shape, torch.uint8)
    assert torch.equal(show(transform, images), slow_apply(transform, images, 0))
    assert torch.equal(put_back(transform, images, images.flip(0)), slow_invert(transform, images, images.flip(0)))


def test_windows_after_the_way_back_show_the_visible_region():
    stored, shape = torch.full((50, 3, 32, 32), torch.nan), (3, 32, 32)
    transform = CropFlip.draw(torch.arange(50), shape, seed=0, epoch=0)
    p = torch.randn(50, *shape)
    visible = show(transform, torch.ones(50, *shape)).bool()
    again = show(transform, put_back(transform, p, stored))
    assert torch.equal(again[visible], p[visible])
    assert (again[~visible] == 0).all()
    inside = put_back(transform, torch.ones(50, *shape), torch.zeros(50, *shape)).bool()
    assert stored[~inside].isnan().all()
    assert not stored[inside].isnan().any()


def corners_of_all_kinds(shape, padding):
    side = torch.arange(2 * padding + 1)
    rows, cols, flip = torch.cartesian_prod(side, side, torch.arange(2)).unbind(1)
    return CropFlip(rows, cols, flip.bool(), padding)


@pytest.mark.parametrize(("shape", "padding"), SHAPES)
def test_gather_and_scatter_equal_the_loop(shape, padding):
    transform = corners_of_all_kinds(shape, padding)
    c, h, w = shape
    canvas = torch.randn(len(transform.rows), c, h + 2 * padding, w + 2 * padding)
    windows = torch.randn(len(canvas), *shape)
    gathered, scattered = torch.empty_like(windows), canvas.clone()
    for i, (row, col, flip) in enumerate(zip(transform.rows, transform.cols, transform.flip, strict=True)):
        where = (i, slice(None), slice(row, row + h), slice(col, col + w))
        gathered[i] = canvas[where].flip(2) if flip else canvas[where]
        scattered[where] = windows[i].flip(2) if flip else windows[i]
    assert torch.equal(transform.gather_window(canvas), gathered)
    out = canvas.clone().to(memory_format=torch.channels_last)
    assert transform.scatter_window(windows, out) is out
    assert torch.equal(out, scattered)
    assert torch.equal(transform.gather_window(out), windows)


def test_a_window_does_not_depend_on_who_pads():
    images = make_images(20, (3, 8, 8), torch.float32)
    transform = CropFlip.draw(torch.arange(20), (3, 8, 8), 2, seed=0, epoch=0)
    assert torch.equal(transform.gather_window(torch.nn.functional.pad(images, (2, 2, 2, 2))), show(transform, images))


def test_the_identity_changes_nothing():
    images = make_images(5, (3, 8, 8), torch.float32)
    still = CropFlip.identity(5, 2)
    assert torch.equal(show(still, images), images)
    assert torch.equal(still.gather_window(torch.nn.functional.pad(images, (2, 2, 2, 2))), images)


def test_memory_formats_and_gradients():
    images = make_images(9, (3, 32, 32), torch.float32)
    transform = CropFlip.draw(torch.arange(9), (3, 32, 32), seed=0, epoch=0)
    expected = show(transform, images)
    assert torch.equal(show(transform, images.to(memory_format=torch.channels_last)), expected)
    wide = torch.zeros(9, 3, 32, 64)
    wide[..., ::2] = images
    assert torch.equal(show(transform, wide[..., ::2]), expected)
    out = torch.zeros(9, 3, 32, 32).to(memory_format=torch.channels_last)
    assert torch.equal(put_back(transform, images, out), slow_invert(transform, images, torch.zeros_like(images)))

    leaf = images.clone().requires_grad_()
    weight = torch.randn(9, 3, 32, 32)
    (gradient,) = torch.autograd.grad((show(transform, leaf) * weight).sum(), leaf)
    assert torch.equal(gradient, put_back(transform, weight, torch.zeros_like(weight)))  # the adjoint is the way back


def test_a_buffer_of_lower_precision_keeps_its_dtype():
    p = torch.rand(4, 3, 8, 8)
    transform = CropFlip.draw(torch.arange(4), p.shape, 2, seed=0, epoch=0)
    store = put_back(transform, p, torch.zeros(4, 3, 8, 8, dtype=torch.float16))
    assert torch.equal(store, put_back(transform, p.half(), torch.zeros_like(store)))


def test_draws_belong_to_the_image():
    index = torch.tensor([7, 100_000, 3, 49_999])
    together = CropFlip.draw(index, (3, 32, 32), seed=5, epoch=6)
    for position, image in enumerate(index):
        alone = CropFlip.draw(image[None], (3, 32, 32), seed=5, epoch=6)
        for name in ("rows", "cols", "flip"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[position])


def test_draws_are_uniform_and_change_with_seed_and_epoch():
    n = 90_000
    first = CropFlip.draw(torch.arange(n), (3, 32, 32), seed=0, epoch=0)
    for corner in (first.rows, first.cols):
        counts = torch.bincount(corner, minlength=9)
        assert len(counts) == 9
        assert (counts - n / 9).abs().max() < 5 * (n / 9 * 8 / 9) ** 0.5  # five standard deviations of a binomial
    assert abs(int(first.flip.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    assert abs(torch.corrcoef(torch.stack([first.rows, first.cols, first.flip]).double())[0, 1:]).max() < 5 / n**0.5
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        second = CropFlip.draw(torch.arange(n), (3, 32, 32), **other)
        assert (first.rows == second.rows).float().mean() < 0.2
        assert abs((first.flip == second.flip).float().mean() - 0.5) < 0.05
    assert not CropFlip.draw(torch.arange(n), (3, 32, 32), seed=0, epoch=0, flip=False).flip.any()


def test_policy():
    assert not any(may_flip(name) for name in ("digits", "mnist", "svhn", "arrays", "mine"))
    assert all(may_flip(name) for name in ("cifar10", "cifar100", "fashionmnist", "/data/imagenet"))
    assert set(FLIP_ALLOWED) == {"digits", "mnist", "svhn", "cifar10", "cifar100", "fashionmnist", "folder", "arrays"}


def test_errors():
    with pytest.raises(DataError, match=r"padding of 0 to 7 pixels, got 8"):
        CropFlip.draw(torch.arange(2), (1, 8, 8), 8, seed=0, epoch=0)
    transform = CropFlip.draw(torch.arange(2), (1, 8, 8), 1, seed=0, epoch=0)
    with pytest.raises(DataError, match=r"expected \(2, C, H, W\).*got \(3, 1, 8, 8\)"):
        transform.gather_window(torch.zeros(3, 1, 8, 8))
    with pytest.raises(DataError, match=r"expected windows of shape \(2, 1, 8, 9\)"):
        put_back(transform, torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9))
    with pytest.raises(DataError, match=r"windows of shape \(2, 1, 8, 8\), got \(2, 1, 8, 7\)"):
        transform.scatter_window(torch.zeros(2, 1, 8, 7), torch.zeros(2, 1, 10, 10))
    with pytest.raises(DataError, match=r"padded by 1 pixels on all sides"):
        transform.gather_window(torch.zeros(2, 1, 2, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    images = make_images(33, (3, 32, 32), torch.uint8)
    here = CropFlip.draw(torch.arange(33), (3, 32, 32), seed=0, epoch=3)
    there = CropFlip.draw(torch.arange(33, device="cuda"), (3, 32, 32), seed=0, epoch=3)
    assert torch.equal(show(here, images), show(there, images.cuda()).cpu())
    out = torch.zeros_like(images)
    assert torch.equal(put_back(there, images.cuda(), out.cuda()).cpu(), put_back(here, images, out))
