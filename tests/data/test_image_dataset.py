"""ImageDataset and splits."""

import numpy as np
import pytest
import torch
from helpers.image_sets import arrays, on_disk

from pyengm.data import (
    ImageDataset,
    split_validation,
)
from pyengm.data.memmap import MemmapImages
from pyengm.errors import DataError


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
    with pytest.raises(DataError, match="cifar10 has 9 images, a validation split needs 10"):
        split_validation(data.subset(range(9)))
