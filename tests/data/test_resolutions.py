"""Resolutions by epoch: shrunk batches for every kind of loader."""

import pytest
import torch
from helpers.image_sets import arrays, on_disk
from torchvision.transforms.v2 import functional as vision

from pyengm.data import Loader
from pyengm.errors import ConfigError
from pyengm.training import TrainConfig, build_components
from pyengm.training.resolutions import parse_resolutions

SIDES = {1: 5, 3: 6}


def loader(data, **options):
    return Loader(data, 12, **({"device": "cpu", "seed": 3, "augment": "shift", "shuffle": True} | options))


@pytest.mark.parametrize(("epoch", "side"), [(0, 8), (1, 5), (2, 5), (3, 6), (9, 6)])
def test_images_are_those_of_torchvision(tmp_path, epoch, side):
    data = arrays()
    whole = loader(data).epoch(epoch)
    batches = list(loader(data, resolutions=SIDES, memory_format=torch.channels_last).epoch(epoch))
    fetched = loader(on_disk(data, tmp_path / "x.npy"), resident=False, resolutions=SIDES).epoch(epoch)
    for batch, expected, other in zip(batches, whole, fetched, strict=True):
        shrunk = vision.resize(expected.x, [side, side], antialias=True)
        torch.testing.assert_close(batch.x, shrunk, rtol=0, atol=1e-6)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(other.x, batch.x, rtol=0, atol=1e-6)
        assert 0 <= batch.x.min() <= batch.x.max() <= 1
        assert batch.y.equal(expected.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolutions": ("128",)}, "resolutions has '128'; expected EPOCH:PIXELS, such as 0:128"),
        ({"resolutions": ("0:0",)}, "resolutions has '0:0'"),
        ({"resolutions": ("-1:5",)}, "resolutions has '-1:5'"),
        ({"resolutions": ("3:5", "3:6")}, "resolutions are 3:5 3:6; expected epochs that rise"),
        ({"resolutions": ("14:5",)}, "resolutions begin one at epoch 14, and the run has 14 epochs"),
        ({"resolutions": ("0:9",)}, "expected square images and resolutions of 1 to 8 pixels, got 8 x 8 and 9"),
        ({"resolutions": ("0:4",), "model": "cnn4"}, "resolutions has 4 pixels, which a .* made for 8 does not take"),
        ({"resolutions": ("0:5",), "method": "atas"}, "and atas keeps .* at the full size: leave resolutions out"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build_components(TrainConfig.from_flat(**{"model": "resnet18", "width": 2, **options}).resolve())


def test_words():
    assert parse_resolutions(("0:128", "30:160")) == {0: 128, 30: 160}
    assert parse_resolutions(()) == {}
