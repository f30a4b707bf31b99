"""Data sets by name: the digits, torchvision's, and unknown names; nothing is downloaded."""

import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers.image_sets import random_pixels

from pyengm.data import (
    DATASETS,
    load,
    torchvision_sets,
)
from pyengm.errors import DataError


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

    monkeypatch.setattr(torchvision.datasets, torchvision_sets.SETS["cifar10"], unreachable)
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
    calls = []
    make = lambda **options: calls.append(options) or fake  # noqa: E731
    monkeypatch.setattr(torchvision.datasets, torchvision_sets.SETS[name], make)
    data = load(name, "test", root="~/somewhere", download=True)
    which = {"split": "test"} if name == "svhn" else {"train": False}
    assert calls == [{"root": os.path.expanduser("~/somewhere"), "download": True, **which}]
    channels = 1 if "mnist" in name else 3
    assert np.array_equal(data.images.numpy(), pixels[..., :channels].transpose(0, 3, 1, 2))
    assert data.images.is_contiguous()
    assert data.labels.tolist() == labels
    assert data.classes == (tuple("0123456789") if name == "svhn" else tuple("abc"))
