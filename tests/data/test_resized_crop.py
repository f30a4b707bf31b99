"""Random resized crops: torchvision's, drawn per image, and the way back into what is stored."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as transforms

from pyengm.data import CropFlip, ResizedCrop, margin_for
from pyengm.errors import DataError
from pyengm.methods.base import DatasetSpec
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Purpose, philox_uniform

SHAPES = [((74, 74), (64, 64)), ((64, 64), (64, 64)), ((9, 14), (5, 10)), ((40, 40), (2, 2)), ((24, 60), (20, 56))]
INDEX = torch.tensor([40, 7, 1000, 3, 12])


def draw(index, canvas, size, epoch=0, **options):
    return ResizedCrop.draw(index, canvas, size, seed=5, epoch=epoch, **options)


def make_images(n, canvas, seed=0):
    return torch.randint(0, 256, (n, 3, *canvas), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def box(crop, i):
    return tuple(int(side[i]) for side in (crop.top, crop.left, crop.height, crop.width))


def resized_crop(crop, images):
    """torchvision's, one image at a time."""
    shown = [transforms.resized_crop(x, *box(crop, i), list(crop.size), antialias=False) for i, x in enumerate(images)]
    return torch.stack([x.flip(2) if flip else x for x, flip in zip(shown, crop.flip, strict=True)])


@pytest.mark.parametrize(("canvas", "size"), SHAPES)
def test_images_are_those_of_torchvision(canvas, size):
    images, index = make_images(50, canvas), torch.arange(40)
    crop, positions = draw(index, canvas, size), (index * 7) % 50
    expected = resized_crop(crop, images[positions].float() / 255)
    found = crop.to_float(images, positions)
    # Both round positions of up to max(canvas) pixels to float32, a few times each and in two directions, and
    # neighbours differ by 1 at most.
    tolerance = 8 * max(canvas) * 2**-24
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert crop.flip.any()
    assert not crop.flip.all()
    assert found.min() >= 0
    assert found.max() <= 1
    last = crop.to_float(images, positions, memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert last.equal(found)
    assert crop.to_float(images[positions]).equal(found)
    assert crop.gather_window(images[positions].float() / 255).clamp(0, 1).equal(found)


def test_an_empty_batch():
    crop = draw(INDEX[:0], (74, 74), (64, 64))
    assert crop.to_float(make_images(5, (74, 74)), INDEX[:0]).shape == (0, 3, 64, 64)
    assert crop.scatter_window(torch.zeros(0, 3, 64, 64), torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_a_box_of_the_same_size_shows_the_pixels():
    images = make_images(6, (20, 24))
    shift = CropFlip.draw(torch.arange(6), (3, 16, 20), 2, seed=0, epoch=0)
    found = shift.boxes((20, 24)).to_float(images)
    torch.testing.assert_close(found, shift.gather_window(images.float() / 255), rtol=0, atol=8 * 24 * 2**-24)


def test_white_stays_white():
    crop = draw(torch.arange(200), (74, 74), (64, 64))
    white = crop.to_float(torch.full((200, 1, 74, 74), 255, dtype=torch.uint8))
    assert white.max() == 1  # attacks refuse more
    assert white.min() > 1 - 4 * 2**-24


def draw_slowly(index, canvas, size, epoch):
    """torchvision's rule in a loop, from the same random values."""
    height, width = canvas
    u = philox_uniform(torch.tensor([index]), (22,), seed=5, purpose=Purpose.CROP, epoch=epoch)[0].tolist()
    for k in range(10):
        area = (0.08 + 0.92 * u[k]) * height * width
        ratio = math.exp(math.log(3 / 4) + u[10 + k] * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    return RandomResizedCrop.get_params(torch.empty(3, *canvas), [4.0, 4.0], [3 / 4, 4 / 3])  # never fits


@pytest.mark.parametrize(("canvas", "size"), [*SHAPES, ((8, 64), (8, 64)), ((64, 8), (60, 4))])
def test_draws_equal_the_loop(canvas, size):
    index = torch.arange(300)
    crop = draw(index, canvas, size, epoch=3)
    expected = [tuple(draw_slowly(i, canvas, size, 3)) for i in range(300)]
    assert [box(crop, i) for i in range(300)] == expected
    middles = [(top, left) == ((canvas[0] - h) // 2, (canvas[1] - w) // 2) for top, left, h, w in expected]
    if max(canvas) == 8 * min(canvas):
        assert 0.3 < sum(middles) / 300 < 0.7  # 0.92**10: a box of up to 1/6 of the area fits
    assert crop.padding == (canvas[0] - size[0]) // 2


def test_draws_are_distributed_as_those_of_torchvision():
    n = 4000
    crop = draw(torch.arange(n), (74, 74), (64, 64))
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(torch.empty(3, 74, 74), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    ours = torch.stack([crop.top, crop.left, crop.height, crop.width], dim=1).double()
    theirs = torch.tensor(theirs).double()
    for measure in (
        lambda boxes: boxes,
        lambda boxes: boxes[:, 2:].prod(dim=1, keepdim=True),
        lambda boxes: (boxes[:, 3:] / boxes[:, 2:3]).log(),
        lambda boxes: (boxes[:, 3:] / boxes[:, 2:3]).log().square(),
    ):
        a, b = measure(ours), measure(theirs)
        error = ((a.var(dim=0) + b.var(dim=0)) / n).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() < 5 * error).all()  # five standard errors
    assert abs(int(crop.flip.sum()) - n / 2) < 5 * (n / 4) ** 0.5


def test_draws_belong_to_the_image():
    images = make_images(5, (74, 74))
    together = draw(INDEX, (74, 74), (64, 64), epoch=2)
    shown = together.to_float(images)
    for i, image in enumerate(INDEX):
        alone = draw(image[None], (74, 74), (64, 64), epoch=2)
        assert box(alone, 0) == box(together, i)
        assert alone.to_float(images, torch.tensor([i])).equal(shown[i : i + 1])
    assert not draw(torch.arange(50), (74, 74), (64, 64), flip=False).flip.any()
    other = draw(INDEX, (74, 74), (64, 64), epoch=3)
    assert [box(other, i) for i in range(5)] != [box(together, i) for i in range(5)]


def mean_change(crop, change, i, shape):
    """What `scatter_window` adds for image i: for every value, pixel by pixel, the shared area times the change."""
    top, left, height, width = box(crop, i)
    added = torch.zeros(len(change), *shape, dtype=change.dtype)
    high, wide = crop.canvas[0] / shape[0], crop.canvas[1] / shape[1]  # of the area of a value
    change = change.flip(2) if crop.flip[i] else change
    for y in range(shape[0]):
        for x in range(shape[1]):
            for v in range(crop.size[0]):
                for u in range(crop.size[1]):
                    begin, end = top + v * height / crop.size[0], top + (v + 1) * height / crop.size[0]
                    rows = max(min(end, (y + 1) * high) - max(begin, y * high), 0)
                    begin, end = left + u * width / crop.size[1], left + (u + 1) * width / crop.size[1]
                    columns = max(min(end, (x + 1) * wide) - max(begin, x * wide), 0)
                    added[:, y, x] += change[:, v, u] * rows * columns / (high * wide)
    return added


@pytest.mark.parametrize("shape", [(9, 14), (4, 4), (3, 7)])
def test_pasting_equals_the_loop(shape):
    crop = draw(INDEX, (9, 14), (5, 10))
    canvas = torch.rand(5, 2, *shape, dtype=torch.float64)
    windows = torch.rand(5, 2, 5, 10, dtype=torch.float64)
    change = windows - crop.gather_window(canvas)
    expected = canvas + torch.stack([mean_change(crop, change[i], i, shape) for i in range(5)])
    out = canvas.clone()
    assert crop.scatter_window(windows, out) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    untouched = torch.stack([mean_change(crop, torch.ones_like(change[i]), i, shape) == 0 for i in range(5)])
    assert untouched.any()
    assert out[untouched].equal(canvas[untouched])


@pytest.mark.parametrize("shape", [(20, 24), (5, 6)])
def test_boxes_of_a_shift_are_the_shift(shape):
    shift = CropFlip.draw(INDEX, (1, 16, 20), 2, seed=0, epoch=1)
    boxes, canvas = shift.boxes((20, 24)), torch.rand(5, 1, *shape, dtype=torch.float64)
    whole = F.interpolate(canvas, (20, 24), mode="bilinear")
    torch.testing.assert_close(boxes.gather_window(canvas), shift.gather_window(whole), rtol=0, atol=1e-12)
    windows = torch.rand(5, 1, 16, 20, dtype=torch.float64)
    change = shift.scatter_window(windows - shift.gather_window(whole), torch.zeros_like(whole))
    expected = canvas + F.adaptive_avg_pool2d(change, shape)
    torch.testing.assert_close(boxes.scatter_window(windows, canvas.clone()), expected, rtol=0, atol=1e-12)


def waves(n=5, seed=0):
    noise = torch.randn(n, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (74, 74), mode="bicubic")


@pytest.mark.parametrize(("resolution", "error"), [(None, 0.02), (20, 0.15)])
def test_a_store_follows_the_image(resolution, error):
    """What was written through the boxes of some epochs is read through that of another one."""
    store = PerExampleBuffer(DatasetSpec(INDEX, (1, 64, 64), padding=5), resolution=resolution)
    rows, truth, like = store.rows(INDEX), waves(), torch.zeros(5, 1, 64, 64)
    for epoch in range(30):  # each box goes over 8 to 100 % of the canvas
        crop = draw(INDEX, (74, 74), (64, 64), epoch=epoch)
        store.write(rows, crop.gather_window(truth), crop)
    # An average over s pixels of a wave of 18 and more loses up to (pi s / 18)^2 / 6 of it: 0.5 % at s = 1; 6 % at 3.7,
    # where interpolating between values loses as much again.
    for epoch in range(30, 34):
        crop = draw(INDEX, (74, 74), (64, 64), epoch=epoch)
        shown = crop.gather_window(truth)
        assert (store.read(rows, crop, like) - shown).norm() < error * shown.norm()
    assert (store.read(rows, None, like) - truth[..., 5:-5, 5:-5]).norm() < error * truth[..., 5:-5, 5:-5].norm()


def test_margin_is_that_of_imagenet():
    assert [margin_for(size) for size in (224, 64, 112, 299)] == [16, 5, 8, 21]


def test_errors():
    for canvas, size in (((74, 74), (65, 65)), ((74, 74), (64, 66)), ((60, 60), (64, 64)), ((4, 4), (0, 0))):
        with pytest.raises(DataError, match=rf"crops of {size[0]}x{size[1]} from images of {canvas[0]}x{canvas[1]}"):
            draw(INDEX, canvas, size)
    crop = draw(INDEX, (74, 74), (64, 64))
    with pytest.raises(DataError, match=r"images \(N, C, 74, 74\), got \(5, 3, 64, 64\)"):
        crop.to_float(make_images(5, (64, 64)))
    for images, positions in ((make_images(6, (74, 74)), None), (make_images(9, (74, 74)), torch.arange(6))):
        with pytest.raises(DataError, match=r"expected 5 images for this transform, got \(6,\)"):
            crop.to_float(images, positions)
    with pytest.raises(DataError, match=r"expected \(5, C, H, W\).*got \(4, 1, 8, 8\)"):
        crop.gather_window(torch.zeros(4, 1, 8, 8))
    with pytest.raises(DataError, match=r"windows of shape \(5, 1, 64, 64\), got \(5, 1, 74, 74\)"):
        crop.scatter_window(torch.zeros(5, 1, 74, 74), torch.zeros(5, 1, 8, 8))
    with pytest.raises(DataError, match=r"on a canvas of \(74, 74\) pixels, expected one of \(72, 72\)"):
        crop.boxes((72, 72))
    store = PerExampleBuffer(DatasetSpec(INDEX, (3, 64, 64), padding=4))
    with pytest.raises(DataError, match="padded by 4 pixels, augmentation pads by 5"):
        store.read(store.rows(INDEX), crop, torch.zeros(5, 3, 64, 64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    images = make_images(33, (74, 74))
    here, there = (draw(torch.arange(33, device=device), (74, 74), (64, 64)) for device in ("cpu", "cuda"))
    for name in ("top", "left", "height", "width", "flip"):
        assert getattr(here, name).equal(getattr(there, name).cpu())
    tolerance = 8 * 74 * 2**-24  # as above
    torch.testing.assert_close(there.to_float(images.cuda()).cpu(), here.to_float(images), rtol=0, atol=tolerance)
    canvas, windows = torch.rand(33, 3, 20, 20), torch.rand(33, 3, 64, 64)
    found = there.scatter_window(windows.cuda(), canvas.cuda()).cpu()
    torch.testing.assert_close(found, here.scatter_window(windows, canvas.clone()), rtol=0, atol=1e-5)
