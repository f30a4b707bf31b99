"""Folders of images: layouts, sizes, the cache, and damaged files; the images are generated here."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.image_sets import arrays, make_folder, random_pixels, save
from PIL import Image
from torchvision.transforms import functional as transforms

from pyengm.data import (
    image_cache,
    load,
)
from pyengm.errors import DataError


@pytest.mark.parametrize("test", ["test", "val"])
def test_folder(tmp_path, test):
    root = make_folder(tmp_path / "set", size=(6, 8), test=test)
    train = load(root, "train")
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (train.shape, train.name) == ((3, 6, 8), str(root))
    for position, seed in enumerate((10, 11, 12, 0, 1, 2)):
        assert np.array_equal(train.images[position].numpy(), random_pixels(seed, 6, 8).transpose(2, 0, 1))
    data = load(str(root), "test", indices=[1])
    assert (data.classes, data.labels.tolist(), data.index.tolist()) == (("cat", "dog"), [1], [1])
    assert np.array_equal(data.images[0].numpy(), random_pixels(100, 6, 8).transpose(2, 0, 1))


def test_order_of_images(tmp_path):
    """By class, then by path, through sub-folders and links; hidden files and folders do not count."""
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    names = ["a/b.PNG", "a/b/0.png", "a/b-c.png", "a/z.png", "a-b/0.png", "a-b/.1.png", "a/.b/1.png", ".git/0.png"]
    names.append("B/0.png")
    for seed, name in enumerate(names):
        save(root / "train" / name, random_pixels(seed, 4, 4))
    (root / "train" / "a" / "notes.txt").write_text("no image")
    save(elsewhere / "0.png", random_pixels(20, 4, 4))
    (root / "train" / "linked").symlink_to(elsewhere)
    data = load(root, "train")
    assert data.classes == ("B", "a", "a-b", "linked")
    found = [(data.classes[label], image) for label, image in zip(data.labels, data.images[:], strict=True)]
    expected = [("B", 8), ("a", 6), ("a", 2), ("a", 0), ("a", 1), ("a", 3), ("a-b", 4), ("linked", 20)]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, image), (_, seed) in zip(found, expected, strict=True):
        assert np.array_equal(image.numpy(), random_pixels(seed, 4, 4).transpose(2, 0, 1))


def test_second_load_reads_the_cache(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "set")
    first = load(root, "train")
    monkeypatch.setattr(image_cache, "_pixels", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load(root, "train").images[:], first.images[:])
    assert [path.name for path in cache.rglob("[!.]*") if path.is_file()] == ["images.npy"]
    monkeypatch.undo()
    monkeypatch.setenv("PYENGM_DATA", str(cache))
    save(root / "train" / "cat" / "0.png", random_pixels(77, 8, 8))
    os.utime(root / "train" / "cat" / "0.png", ns=(1, 1))
    assert np.array_equal(load(root, "train").images[0].numpy(), random_pixels(77, 8, 8).transpose(2, 0, 1))
    assert len(list(cache.rglob("images.npy"))) == 2


def test_different_sizes_become_224(tmp_path):
    root = make_folder(tmp_path / "set", size=(300, 280), count=1)
    odd = random_pixels(5, 240, 320)
    save(root / "train" / "dog" / "odd.png", odd)
    data = load(root, "train")
    assert data.shape == (3, 224, 224)
    resized = transforms.resize(Image.fromarray(odd), 256, transforms.InterpolationMode.BICUBIC)
    expected = transforms.pil_to_tensor(transforms.center_crop(resized, 224))
    assert torch.equal(data.images[2], expected)


def test_image_size(tmp_path, cache):
    root = make_folder(tmp_path / "set", size=(20, 30), count=1)
    save(root / "train" / "dog" / "exact.png", random_pixels(9, 14, 14))
    data = load(root, "train", image_size=14)
    assert np.array_equal(data.images[2].numpy(), random_pixels(9, 14, 14).transpose(2, 0, 1))
    image = Image.open(root / "train" / "cat" / "0.png").resize((24, 16), Image.Resampling.BICUBIC)  # 14 * 256 / 224
    assert np.array_equal(data.images[0].numpy(), np.asarray(image).transpose(2, 0, 1)[:, 1:15, 5:19])
    assert load(root, "train", image_size=7).shape == (3, 7, 7)
    assert len(list(cache.rglob("images.npy"))) == 2


def test_margin(tmp_path, cache):
    root = make_folder(tmp_path / "set", size=(20, 30), count=1)
    save(root / "train" / "dog" / "exact.png", random_pixels(9, 16, 16))
    data = load(root, "train", image_size=14, margin=1)
    assert data.shape == (3, 16, 16)
    assert np.array_equal(data.images[2].numpy(), random_pixels(9, 16, 16).transpose(2, 0, 1))
    image = Image.open(root / "train" / "cat" / "0.png").resize((24, 16), Image.Resampling.BICUBIC)
    whole = np.asarray(image).transpose(2, 0, 1)[:, :, 4:20]
    assert np.array_equal(data.images[0].numpy(), whole)
    # the images of the test are their middles
    middle = load(root, "train", image_size=14, indices=[0, 1])
    assert torch.equal(data.subset([0, 1]).center_crop(14).images, middle.images[:])
    assert len(list(cache.rglob("images.npy"))) == 2
    for image_size, margin in ((14, -1), (None, 2)):
        with pytest.raises(DataError, match=f"margin of 0 pixels or more around .* got {margin} around {image_size}"):
            load(root, "train", image_size=image_size, margin=margin)
    with pytest.raises(DataError, match="resizes folders only: digits has 8x8 images"):
        load("digits", "train", image_size=6, margin=2)


def test_center_crop():
    data = arrays(n=4, shape=(3, 8, 10))
    middle = data.center_crop(4)
    assert torch.equal(middle.images, data.images[:, :, 2:6, 3:7])
    assert (middle.labels.tolist(), middle.index.tolist()) == (data.labels.tolist(), data.index.tolist())
    square = arrays(n=4)
    assert square.center_crop(8) is square
    for size in (0, 9):
        with pytest.raises(DataError, match=f"a size of 1 to 8 pixels, got {size}"):
            data.center_crop(size)


def test_grey_and_palette_become_rgb(tmp_path):
    root = make_folder(tmp_path / "set", count=1)
    grey = random_pixels(3, 8, 8, 1)
    save(root / "train" / "cat" / "0.png", grey)
    Image.fromarray(random_pixels(4, 8, 8)).quantize(16).save(root / "train" / "dog" / "0.png")
    data = load(root, "train")
    assert np.array_equal(data.images[0].numpy(), np.broadcast_to(grey.transpose(2, 0, 1), (3, 8, 8)))
    palette = Image.open(root / "train" / "dog" / "0.png").convert("RGB")
    assert np.array_equal(data.images[1].numpy(), np.asarray(palette).transpose(2, 0, 1))


def make_tiny(root):
    (root / "wnids.txt").parent.mkdir()
    (root / "wnids.txt").write_text("n02\nn01\n")
    for label, name in enumerate(("n01", "n02")):
        save(root / "train" / name / "images" / f"{name}_0.JPEG", random_pixels(label, 8, 8))
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    for number in range(3):
        save(root / "val" / "images" / f"val_{number}.JPEG", random_pixels(number, 8, 8))
    save(root / "test" / "images" / "test_0.JPEG", random_pixels(9, 8, 8))  # has no labels
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t7\t7\n" for number, name in enumerate(("n02", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tmp_path):
    root = make_tiny(tmp_path / "tiny")
    train, test = load(root, "train"), load(root, "test")
    assert train.classes == test.classes == ("n01", "n02")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 0, 1])
    assert torch.equal(train.images[1], test.images[1])  # the same pixels were saved


def test_tiny_imagenet_errors(tmp_path):
    root = make_tiny(tmp_path / "tiny")
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn09\t0\t0\t7\t7\n")
    with pytest.raises(DataError, match=r"val_0.JPEG has class 'n09', which is not in train/"):
        load(root, "test")
    annotations.write_text("val_8.JPEG\tn01\t0\t0\t7\t7\n")
    with pytest.raises(DataError, match=r"names val_8.JPEG, but there is no"):
        load(root, "test")
    annotations.write_text("")
    with pytest.raises(DataError, match="is empty"):
        load(root, "test")


def test_folder_errors(tmp_path, cache):
    with pytest.raises(DataError, match=r"expected images of two classes or more in .*/train/<class>/"):
        load(tmp_path, "train")
    root = make_folder(tmp_path / "set", count=1)
    save(root / "test" / "cow" / "0.png", random_pixels(0, 8, 8))
    with pytest.raises(DataError, match=r"test/cow: the class 'cow' is not in train/"):
        load(root, "test")
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"train/emu has no image"):
        load(root, "train")
    for name in ("cat", "dog"):
        save(tmp_path / "half" / "train" / name / "0.png", random_pixels(0, 8, 8))
    with pytest.raises(DataError, match=r"expected test images in .*/test/<class>/ or .*/val/<class>/"):
        load(tmp_path / "half", "test")
    (tmp_path / "half" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"half/val has no image"):
        load(tmp_path / "half", "test")


@pytest.mark.parametrize("position", [0, 150])
@pytest.mark.parametrize("damage", ["truncated", "no image"])
def test_damaged_image_leaves_nothing(tmp_path, cache, damage, position):
    root = make_folder(tmp_path / "set", count=100)
    path = sorted((root / "train").rglob("*.png"))[position]
    path.write_bytes(path.read_bytes()[:120] if damage == "truncated" else b"hello")
    with pytest.raises(DataError, match=rf"{path}: cannot read this image"):
        load(root, "train")
    assert not [found for found in cache.rglob("[!.]*") if found.name != "folders"]


def test_sixteen_bit_images_are_refused(tmp_path):
    root = make_folder(tmp_path / "set", count=1)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0.png: expected 8 bits per channel, got mode I"):
        load(root, "train")


def test_full_disk(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "set", count=1)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r" are needed for decoded images .* make room"):
        load(root, "train")
    assert not list((cache / "folders").glob("[!.]*"))
