"""Sources, splits and batches; images are generated here, nothing is downloaded."""

import hashlib
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.reference_crops import show
from PIL import Image
from torchvision.transforms import functional as transforms

from pyengm.data import (
    DATASETS,
    CropFlip,
    ImageDataset,
    Loader,
    ResizedCrop,
    image_cache,
    load,
    split_validation,
    to_float,
    torchvision_sets,
)
from pyengm.data.memmap import MemmapImages
from pyengm.data.prefetch import prefetch
from pyengm.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYENGM_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_pixels(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)


def make_folder(root, size=(8, 8), test="test", count=3):
    """Classes cat and dog, `count` training images and one test image of each."""
    for label, name in enumerate(("dog", "cat")):
        for number in range(count):
            save(root / "train" / name / f"{number}.png", random_pixels(10 * label + number, *size))
        save(root / test / name / "0.png", random_pixels(100 + label, *size))
    return root


def arrays(n=50, shape=(3, 8, 8), classes=5):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return ImageDataset.from_arrays(images, torch.arange(n) % classes, name="cifar10")


def on_disk(data, path):
    np.save(path, data.images.numpy())
    return ImageDataset(np.load(path, mmap_mode="r"), data.labels, data.classes, data.name, data.split)


# Sources


def test_digits():
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == test.shape == (1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert (train.num_classes, train.channels, train.image_size, train.name) == (10, 1, 8, "digits")
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    assert {0, 16, 128, 255} <= set(train.images.unique().tolist())
    from_both = torch.cat([train.images, test.images]).flatten(1).tolist()
    source = pytest.importorskip("sklearn.datasets").load_digits()
    assert sorted(from_both) == sorted(np.round(source.data * 255 / 16).astype(int).tolist())


def test_digits_split_never_changes():
    test = load("digits", "test")
    digest = hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "bd48c9f49fe4a7f4"


def test_indices_keep_the_identity():
    whole = load("digits", "train")
    for indices in ([5, 1, 1400], np.array([5, 1, 1400]), torch.tensor([5, 1, 1400]), range(3)):
        part = load("digits", "train", indices=indices)
        assert part.index.tolist() == list(indices)
        assert torch.equal(part.images, whole.images[part.index])
        assert torch.equal(part.labels, whole.labels[part.index])
    assert part.subset([2, 0]).index.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1437], "positions from 0 to 1436, got 0 to 1437"),
        ([-1], "got -1 to -1"),
        ([3, 4, 3], "position 3 comes more than once"),
        ([], "non-empty"),
        ([[1, 2]], r"non-empty list of positions, got shape \(1, 2\)"),
        ([0.5], "whole numbers, got torch.float32"),
        ([True, False], "whole numbers, got torch.bool"),
        (["a"], "indices: expected whole numbers, got list"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(DataError, match=message):
        load("digits", "train", indices=indices)


def test_unknown_names_and_options(tmp_path):
    with pytest.raises(DataError, match=r"unknown data set 'cifar'.*digits, cifar10, .* or a folder"):
        load("cifar", "train")
    with pytest.raises(DataError, match=f"there is no folder {tmp_path}/none"):
        load(tmp_path / "none", "train")
    with pytest.raises(DataError, match='"train" or "test", got \'val\''):
        load("digits", "val")
    with pytest.raises(DataError, match="resizes folders only: digits has 8x8"):
        load("digits", "train", image_size=32)
    with pytest.raises(DataError, match="1 pixel or more, got 0"):
        load(tmp_path, "train", image_size=0)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_torchvision_set(name, cache, tmp_path):
    with pytest.raises(DataError, match=rf"{name}: no intact copy in {cache}: download it .*--download.*PYENGM_DATA"):
        load(name, "train")
    with pytest.raises(DataError, match=str(tmp_path / "elsewhere")):
        load(name, "test", root=tmp_path / "elsewhere")
    assert not cache.exists()


def test_failed_download(monkeypatch):
    def unreachable(root, train, download):
        raise OSError("no route")

    monkeypatch.setitem(torchvision_sets.SETS, "cifar10", unreachable)
    with pytest.raises(DataError, match=r"check the network.*no route"):
        load("cifar10", "train", download=True)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_torchvision_layouts(name, monkeypatch):
    pixels, labels = random_pixels(0, 4 * 6, 5).reshape(4, 6, 5, 3), [0, 2, 1, 2]
    if name == "svhn":
        fake = SimpleNamespace(data=np.asfortranarray(pixels.transpose(0, 3, 1, 2)), labels=np.array(labels))
    elif "mnist" in name:
        fake = SimpleNamespace(data=torch.from_numpy(pixels[..., 0]), targets=torch.tensor(labels), classes=list("abc"))
    else:
        fake = SimpleNamespace(data=pixels, targets=labels, classes=list("abc"))
    asked = []
    monkeypatch.setitem(torchvision_sets.SETS, name, lambda **options: asked.append(options) or fake)
    data = load(name, "test", root="~/somewhere", download=True)
    which = {"split": "test"} if name == "svhn" else {"train": False}
    assert asked == [{"root": os.path.expanduser("~/somewhere"), "download": True, **which}]
    channels = 1 if "mnist" in name else 3
    assert np.array_equal(data.images.numpy(), pixels[..., :channels].transpose(0, 3, 1, 2))
    assert data.images.is_contiguous()
    assert data.labels.tolist() == labels
    assert data.classes == (tuple("0123456789") if name == "svhn" else tuple("abc"))


# Folders


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
    with pytest.raises(DataError, match=r"expected images in .*/train/<class>/"):
        load(tmp_path, "train")
    root = make_folder(tmp_path / "set", count=1)
    save(root / "test" / "cow" / "0.png", random_pixels(0, 8, 8))
    with pytest.raises(DataError, match=r"test/cow: the class 'cow' is not in train/"):
        load(root, "test")
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"train/emu has no image"):
        load(root, "train")
    save(tmp_path / "half" / "train" / "cat" / "0.png", random_pixels(0, 8, 8))
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
    with pytest.raises(DataError, match=r"GB are needed .* make room"):
        load(root, "train")
    assert not list((cache / "folders").glob("[!.]*"))


# ImageDataset and splits


def test_floats_are_rounded():
    images = torch.tensor([0.0, 1.0, 0.5, 0.1]).view(1, 1, 2, 2)
    data = ImageDataset.from_arrays(images.numpy(), [2])
    assert data.images.flatten().tolist() == [0, 255, 128, 26]
    assert (data.classes, data.labels.dtype, data.index.tolist()) == (("0", "1", "2"), torch.int64, [0])
    original = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(ImageDataset.from_arrays(original.to(dtype) / 255, range(7)).images, original)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (torch.full((2, 1, 2, 2), 200.0), [0, 1], None, "found 200.0 to 200.0: divide by 255?"),
        (torch.full((2, 1, 2, 2), -0.5), [0, 1], None, r"in \[0, 1\], found -0.5 to -0.5"),
        (torch.full((2, 1, 2, 2), torch.nan), [0, 1], None, "8 pixel values are NaN or infinite"),
        (torch.full((2, 1, 2, 2), torch.inf), [0, 1], None, "NaN or infinite"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.int64), [0, 1], None, "uint8 images .* got torch.int64"),
        (torch.zeros(2, 2, 2), [0, 1], None, r"\(N, C, H, W\).* got torch.uint8 \(2, 2, 2\)"),
        (torch.zeros(2, 32, 32, 3), [0, 1], None, r"looks like \(N, H, W, C\)"),
        (torch.zeros(0, 1, 2, 2), [], None, r"none of them 0, got torch.uint8 \(0, 1, 2, 2\)"),
        (torch.zeros(2, 1, 2, 2), [0], None, r"one label for each of 2 images, got labels of shape \(1,\)"),
        (torch.zeros(2, 1, 2, 2), [0, 3], "abc", r"labels from 0 to 2 \(3 classes\), got 0 to 3"),
        (torch.zeros(2, 1, 2, 2), [-1, 0], None, r"labels from 0 to 0 .*got -1 to 0"),
        (torch.zeros(2, 1, 2, 2), [0.0, 1.0], None, "labels: expected whole numbers"),
    ],
)
def test_bad_arrays(images, labels, classes, message):
    with pytest.raises(DataError, match=message):
        ImageDataset.from_arrays(images, labels, classes)


def test_bad_index():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="index has shape"):
        ImageDataset(images, torch.zeros(2, dtype=torch.int64), ("a",), "mine", "train", torch.arange(3))


def test_memmap_stays_on_disk(tmp_path):
    data = on_disk(arrays(), tmp_path / "x.npy")
    assert isinstance(data.images, MemmapImages)
    part = data.subset([40, 3, 7]).subset([2, 0])
    assert isinstance(part.images, MemmapImages)
    assert part.index.tolist() == [7, 40]
    assert torch.equal(part.images[:], arrays().images[[7, 40]])
    assert torch.equal(part.images[1], arrays().images[40])
    assert (part.images.shape, part.images.ndim, part.images.nbytes) == ((2, 3, 8, 8), 4, 384)
    assert torch.equal(
        ImageDataset.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), data.labels).images[:], data.images[:]
    )


@pytest.mark.parametrize(("n", "expected"), [(10, 1), (9_999, 999), (10_000, 1000), (20_000, 1000)])
def test_validation_split(n, expected):
    data = arrays(n, (1, 1, 1))
    train, val = split_validation(data)
    assert (len(train), len(val), train.split, val.split) == (n - expected, expected, "train", "val")
    assert torch.equal(torch.cat([train.index, val.index]).sort().values, torch.arange(n))
    assert torch.equal(val.images, data.images[val.index])
    assert torch.equal(split_validation(data)[1].index, val.index)


def test_validation_split_does_not_depend_on_order():
    data = arrays(200, (1, 1, 1))
    shuffled = data.subset(torch.randperm(200, generator=torch.Generator().manual_seed(0)))
    assert set(split_validation(shuffled)[1].index.tolist()) == set(split_validation(data)[1].index.tolist())
    with pytest.raises(DataError, match="needs 10 images or more, cifar10 has 9"):
        split_validation(data.subset(range(9)))


# Loader


def options(**changes):
    return {"device": "cpu", "seed": 3, "augment": "shift", "shuffle": True, **changes}


def same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.index, b.index)
        assert (a.transform is None) == (b.transform is None)
        for name in ("flip", "rows", "top"):  # of a shift and of a resized crop
            draws = [getattr(batch.transform, name, None) for batch in (a, b)]
            assert (draws[0] is draws[1] is None) or torch.equal(*draws)


def test_batches_hold_every_image_once():
    data = arrays()
    batches = Loader(data, 16, **options(augment="none"))
    found = list(batches.epoch(0))
    assert len(batches) == len(found) == 4
    assert [len(batch.x) for batch in found] == [16, 16, 16, 2]
    index = torch.cat([batch.index for batch in found])
    assert torch.equal(index.sort().values, torch.arange(50))
    assert torch.equal(torch.cat([batch.y for batch in found]), data.labels[index])
    assert torch.equal(torch.cat([batch.x for batch in found]), data.images[index].float() / 255)
    assert found[0].x.dtype == torch.float32
    assert found[0].transform is None
    plain = torch.cat([batch.index for batch in Loader(data, 16, **options(shuffle=False)).epoch(0)])
    assert torch.equal(plain, torch.arange(50))


def test_order_changes_with_epoch_and_seed_only():
    data = arrays(1000, (1, 1, 1))
    order = Loader(data, 7, **options()).order(2)
    assert torch.equal(order, Loader(data, 100, **options(augment="none")).order(2))
    for other in (Loader(data, 7, **options()).order(3), Loader(data, 7, **options(seed=4)).order(2)):
        assert (order == other).sum() < 15  # fixed points of a random permutation: Poisson with mean 1
    part = data.subset(range(0, 1000, 3))
    kept = [i for i in order.tolist() if i % 3 == 0]
    assert part.index[Loader(part, 7, **options()).order(2)].tolist() == kept


def test_an_image_does_not_depend_on_its_batch():
    data = arrays(n=60)
    one = {int(i): x for b in Loader(data, 7, **options()).epoch(4) for i, x in zip(b.index, b.x, strict=True)}
    half = data.subset(range(59, 10, -1))
    for changes in ({}, {"shuffle": False}):
        for batch in Loader(half, 32, **options(**changes)).epoch(4):
            for i, x in zip(batch.index, batch.x, strict=True):
                assert torch.equal(x, one[int(i)])


def test_augmentation_is_that_of_the_set():
    batch = next(Loader(arrays(n=64), 64, **options()).epoch(1))
    assert batch.transform.padding == 1
    assert batch.transform.flip.any()
    expected = CropFlip.draw(batch.index, (3, 8, 8), 1, seed=3, epoch=1)
    assert torch.equal(batch.x, to_float(show(expected, arrays(n=64).images[batch.index])))
    resized = Loader(arrays(n=64), 64, **options(augment="resized", crop=(6, 6)))
    assert (resized.shape, resized.padding) == ((3, 6, 6), 1)
    batch = next(resized.epoch(1))
    crop = ResizedCrop.draw(batch.index, (8, 8), (6, 6), seed=3, epoch=1)
    assert torch.equal(batch.x, crop.to_float(arrays(n=64).images, batch.index))
    assert batch.transform.flip.any()
    digits = next(Loader(load("digits", "train"), 512, **options()).epoch(0))
    assert not digits.transform.flip.any()
    assert set(digits.transform.rows.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("resident", [True, False])
def test_start_resumes_exactly(resident):
    batches = Loader(arrays(), 8, **options(resident=resident))
    whole = list(batches.epoch(5))
    for start in range(len(batches) + 1):
        same(batches.epoch(5, start), whole[start:])


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("images", "parts"), [(50, 3), (50, 1), (52, 2), (51, 4), (48, 4), (17, 4), (35, 3)])
def test_the_parts_of_a_batch_make_it_up(images, parts, resident):
    data = arrays(n=images)
    whole = list(Loader(data, 16, **options()).epoch(2))
    pieces = [Loader(data, 16, **options(resident=resident, rank=part, world_size=parts)) for part in range(parts)]
    assert {len(piece) for piece in pieces} == {len(whole)}
    evened = parts > 1 and len(whole[-1].index) < 2 * parts  # a process without images could not take part
    for start in (0, 1, len(whole)):
        found = list(zip(*(piece.epoch(2, start) for piece in pieces), strict=True))
        assert len(found) == len(whole[start:])
        for place, (batch, cut) in enumerate(zip(whole[start:], found, strict=True), start):
            sizes = [len(piece.index) for piece in cut]
            assert min(sizes) >= (2 if parts > 1 else 1)
            assert max(sizes) - min(sizes) <= 1
            assert {piece.size for piece in cut} == {sum(sizes)}
            if evened and place >= len(whole) - 2:
                continue
            for name in ("x", "y", "index"):
                assert torch.equal(torch.cat([getattr(piece, name) for piece in cut]), getattr(batch, name))
            assert torch.equal(torch.cat([piece.transform.rows for piece in cut]), batch.transform.rows)
        if start == 0:
            seen = torch.cat([torch.cat([piece.index for piece in cut]) for cut in found])
            assert torch.equal(seen, torch.cat([batch.index for batch in whole]))


@pytest.mark.parametrize("augment", ["none", "shift", "resized"])
def test_resident_and_fetched_batches_are_the_same(tmp_path, augment):
    data = arrays(n=100)
    mapped = on_disk(data, tmp_path / "x.npy")
    expected = list(Loader(data, 16, **options(augment=augment)).epoch(1))
    assert Loader(data, 16, **options()).resident
    assert not Loader(mapped, 16, **options()).resident
    for source in (data, mapped):
        for resident in (True, False):
            same(Loader(source, 16, **options(augment=augment, resident=resident)).epoch(1), expected)


def test_to_float_equals_torchvision():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert torch.equal(to_float(torch.from_numpy(pixels)[None]), transforms.to_tensor(pixels))


def test_batch_errors():
    with pytest.raises(ConfigError, match="batch size of 1 or more, got 0"):
        Loader(arrays(), 0, **options())
    with pytest.raises(ConfigError, match="unknown augmentation True; known: none, shift, resized"):
        Loader(arrays(), 10, **options(augment=True))
    with pytest.raises(ConfigError, match=r"no crop with augmentation 'shift', got \(6, 6\)"):
        Loader(arrays(), 10, **options(crop=(6, 6)))
    with pytest.raises(DataError, match="crops of 7x7 from images of 8x8"):
        Loader(arrays(), 10, **options(augment="resized", crop=(7, 7)))
    for start in (-1, 6):
        with pytest.raises(ConfigError, match=f"from 0 to 5, got {start}"):
            Loader(arrays(), 10, **options()).epoch(0, start)
    for rank, world_size in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ConfigError, match=f"from 0 to world_size - 1, got rank {rank} of {world_size}"):
            Loader(arrays(), 10, **options(rank=rank, world_size=world_size))
    with pytest.raises(ConfigError, match="each of 11 processes, got batches of 10 from 50 images"):
        Loader(arrays(), 10, **options(rank=0, world_size=11))
    with pytest.raises(ConfigError, match="each of 6 processes, got batches of 10 from 5 images"):
        Loader(arrays(n=5), 10, **options(rank=0, world_size=6))
    with pytest.raises(ConfigError, match="from 0 to 4, got 5"):
        Loader(arrays(n=50), 16, **options(rank=0, world_size=3)).epoch(0, 5)


def test_an_error_in_the_thread_surfaces_in_its_place():
    def work(item):
        if item == 3:
            raise OSError("disk gone")
        return item

    results = prefetch(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_several_threads_keep_the_order():
    first, second = threading.Event(), threading.Event()

    def work(item):  # each of the first two waits for the other
        ours, others = ((first, second), (second, first))[item % 2]
        ours.set()
        assert others.wait(timeout=30)
        return item

    assert list(prefetch(work, range(20), ahead=2, threads=2)) == list(range(20))
    assert list(prefetch(work, range(2), ahead=2, threads=2)) == [0, 1]


def test_closing_early_stops_the_thread():
    before, done = threading.active_count(), []
    generator = prefetch(lambda item: done.append(item) or item, range(1000))
    assert next(generator) == 0
    assert threading.active_count() == before + 1
    generator.close()
    assert threading.active_count() == before
    assert len(done) <= 3  # the one yielded and two ahead

    batches = Loader(arrays(), 4, **options(resident=False)).epoch(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_equal_cpu_batches(tmp_path):
    data = arrays(n=3000)
    expected = list(Loader(data, 256, **options()).epoch(1))
    for source in (data, on_disk(data, tmp_path / "x.npy")):
        assert Loader(source, 256, **options(device="cuda")).resident
        for resident in (True, False):
            there = Loader(source, 256, **options(device="cuda", resident=resident))
            for a, b in zip(there.epoch(1), expected, strict=True):
                assert a.x.is_cuda
                assert a.y.is_cuda
                assert torch.equal(a.x.cpu(), b.x)
                assert torch.equal(a.index.cpu(), b.index)
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(everything.cuda()).cpu(), to_float(everything))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", ["shift", "resized"])
def test_batches_fetched_while_a_device_computes(tmp_path, augment):
    """Buffers are filled again, and device memory is given out again, only when what was in them has been used."""
    data = arrays(n=4000, shape=(3, 64, 64))
    same_images = options(device="cuda", augment=augment)
    resident = Loader(data, 32, **same_images, resident=True)
    fetched = Loader(on_disk(data, tmp_path / "x.npy"), 32, **same_images, resident=False)
    weight = torch.rand(4096, 4096, device="cuda")
    sums = []
    for batch in fetched.epoch(1):  # the host runs far ahead of the device
        for _ in range(20):
            weight = torch.nn.functional.normalize(weight @ weight)
        sums.append(batch.x.double().sum((1, 2, 3)))
    for found, batch in zip(sums, resident.epoch(1), strict=True):
        assert torch.equal(found, batch.x.double().sum((1, 2, 3)))


@pytest.mark.skipif("PYENGM_TEST_CIFAR10" not in os.environ, reason="PYENGM_TEST_CIFAR10 names no folder")
def test_real_cifar10_images():
    root = os.environ["PYENGM_TEST_CIFAR10"]
    train, test = load(root, "train"), load(root, "test")
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (3, 32, 32))
    assert train.classes == test.classes
    assert train.labels.bincount().tolist() == [5000] * 10
    batches = Loader(train, 1000, **options(augment="none"))
    mean = sum(batch.x.sum((0, 2, 3)) for batch in batches.epoch(0)) / 50_000 / 1024
    # The published channel means of the lossless images; JPEG keeps means to about one grey level of 255.
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=1 / 255)
