"""Common corruptions: a folder in the layout of CIFAR-10-C, and the library that makes them."""

import sys

import numpy as np
import pytest
import torch
from helpers.evaluation import CPU, data_for, network
from torch import nn

from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError
from pyengm.evaluation import evaluate_corruptions, further_tables
from pyengm.evaluation.corruptions import mean_accuracy


@pytest.fixture
def model():
    return network()


def write(folder, data, labels=None, **corruptions):
    """Images (n, h, w, c) for the five severities, one after another."""
    folder.mkdir(exist_ok=True)
    for name, images in corruptions.items():
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", data.labels.numpy() if labels is None else labels)
    return folder


def corrupted(data, strength):
    """Severity k adds k times a constant to the pixels."""
    pixels = data.images.permute(0, 2, 3, 1).numpy().astype(int)
    return np.concatenate([np.clip(pixels + k * strength, 0, 255) for k in range(1, 6)]).astype(np.uint8)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_folder(repeated, model, tmp_path):
    data = data_for(model)
    labels = np.tile(data.labels.numpy(), 5) if repeated else None
    folder = write(tmp_path / "c", data, labels, none=corrupted(data, 0), bright=corrupted(data, 20))
    found = evaluate_corruptions(model, folder, data, device=CPU)
    assert list(found) == ["bright", "none"]
    with torch.no_grad():
        clean = (model(data.images / 255).argmax(1) == data.labels).double().mean().item()
        bright = [
            (model((data.images.int() + 20 * k).clamp(0, 255) / 255).argmax(1) == data.labels).double().mean().item()
            for k in range(1, 6)
        ]
    assert found["none"] == [clean] * 5
    assert found["bright"] == bright
    assert mean_accuracy(found) == pytest.approx((5 * clean + sum(bright)) / 10)
    (table,) = further_tables({"corruptions": {"model": {"mean": 0.5, **found}}})
    assert table.row_count == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "labels.npy").unlink(), "layout of CIFAR-10-C"),
        (lambda folder: (folder / "noise.npy").unlink(), "layout of CIFAR-10-C"),
        (lambda folder: np.save(folder / "noise.npy", np.zeros((12, 8, 8, 1), np.uint8)), "expected uint8 images"),
        (lambda folder: np.save(folder / "noise.npy", np.zeros((200, 9, 8, 1), np.uint8)), "expected uint8 images"),
        (lambda folder: np.save(folder / "noise.npy", np.zeros((200, 8, 8, 1))), "expected uint8 images"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(7, int)), "expected 40 or 200 labels, got 7"),
        (lambda folder: (folder / "noise.npy").write_bytes(b"other"), "cannot read"),
    ],
)
def test_other_layouts(change, message, model, tmp_path):
    data = data_for(model)
    folder = write(tmp_path / "c", data, noise=corrupted(data, 0))
    change(folder)
    with pytest.raises(DataError, match=message):
        evaluate_corruptions(model, folder, data, device=CPU)


def test_a_folder_that_is_none(model, tmp_path):
    with pytest.raises(DataError, match="layout of CIFAR-10-C"):
        evaluate_corruptions(model, tmp_path / "missing", data_for(model), device=CPU)


def test_the_library_is_named_where_it_is_missing(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ConfigError, match="pip install imagecorruptions-imaug"):
        evaluate_corruptions(model, "imagecorruptions", data_for(model), device=CPU)


def test_the_library():
    library = pytest.importorskip("imagecorruptions")
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageDataset(images, [0, 1, 2, 0, 1, 2], ("a", "b", "c"), "made", "test")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)).eval()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = evaluate_corruptions(model, "imagecorruptions", data, device=CPU)
    assert set(found) == set(library.get_corruption_names())
    assert found == evaluate_corruptions(model, "imagecorruptions", data, device=CPU)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
