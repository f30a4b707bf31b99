"""Cutout and CutMix: boxes by their formulas, the same for any number of processes, after a stop, and from a disk."""

import math

import pytest
import torch
from helpers.image_sets import arrays, on_disk
from torch.nn import functional as F
from torchvision.transforms import v2

from pyengm.data import Loader
from pyengm.data.cut import cutmix, cutout
from pyengm.errors import ConfigError
from pyengm.ops import Purpose, philox_uniform

N, CLASSES = 40, 5
KEY = {"seed": 3, "epoch": 7}


def pair(height=8, width=12):
    x, other = torch.rand(2, N, 3, height, width, generator=torch.Generator().manual_seed(0)).add(0.1)
    y = torch.arange(N) % CLASSES
    return x, other, y, y.flip(0), torch.arange(N) + 100


def draws(purpose, count):
    return philox_uniform(torch.arange(N) + 100, (count,), purpose=purpose, **KEY)


def loader(data, **options):
    return Loader(data, 12, **({"device": "cpu", "seed": 3, "augment": "shift", "shuffle": True} | options))


def assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.x.equal(other.x)
        assert batch.y.equal(other.y)
        assert batch.index.equal(other.index)


class TestCutMix:
    def test_boxes_are_those_of_torchvision(self, monkeypatch):
        """With our numbers in place of those that it draws for a whole batch."""
        x, other, y, other_y, index = pair()
        mixed, labels = cutmix(x, other, y, other_y, index, share=1.0, classes=CLASSES, **KEY)
        theirs = v2.CutMix(alpha=1.0, num_classes=CLASSES)
        for i, (_, share, row, col) in enumerate(draws(Purpose.CUTMIX, 4)):
            drawn = iter([math.floor(12 * col), math.floor(8 * row)])
            with monkeypatch.context() as patch:
                patch.setattr(type(theirs._dist), "sample", lambda *_, share=share: share.double())
                patch.setattr(torch, "randint", lambda *size, drawn=drawn, **named: torch.tensor([next(drawn)]))
                # torchvision mixes an image with the one before it
                images, mixes = theirs(torch.stack([other[i], x[i]]), torch.stack([other_y[i], y[i]]))
            assert mixed[i].equal(images[1])
            torch.testing.assert_close(labels[i], mixes[1], rtol=0, atol=1e-6)

    def test_shares_of_labels_are_shares_of_pixels(self):
        x, other, y, other_y, index = pair()
        mixed, labels = cutmix(x, other, y, other_y, index, share=0.6, classes=CLASSES, **KEY)
        shown = (mixed == other).all(1).float().mean((1, 2))
        assert ((mixed == x) | (mixed == other)).all()
        torch.testing.assert_close(labels.gather(1, y[:, None])[y != other_y, 0], 1 - shown[y != other_y])
        torch.testing.assert_close(labels.sum(1), torch.ones(N))
        whole = (mixed == x).flatten(1).all(1)
        assert 0.2 < whole.float().mean() < 0.7
        assert labels[whole].equal(F.one_hot(y[whole], CLASSES).float())


def test_cutout_erases_a_square_around_a_pixel():
    x, *_, index = pair()
    for side in (3, 4):
        found = cutout(x.clone(), index, side, **KEY)
        for image, erased, u in zip(x, found, draws(Purpose.CUTOUT, 2), strict=True):
            row, col = math.floor(8 * u[0]), math.floor(12 * u[1])
            expected = image.clone()
            top, left = row - side // 2, col - side // 2
            expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
            assert erased.equal(expected)


CUT = {"cutout": 3, "cutmix": 0.8}


class TestLoader:
    def test_an_image_shows_the_one_before_it(self):
        data = arrays()
        plain, cut = (list(loader(data, **options).epoch(2)) for options in ({}, {"cutmix": 1.0}))
        for whole, mixed in zip(plain, cut, strict=True):
            expected = cutmix(
                *(whole.x, whole.x.roll(1, 0), whole.y, whole.y.roll(1), whole.index),
                **{"share": 1.0, "classes": CLASSES, "seed": 3, "epoch": 2},
            )
            assert mixed.x.equal(expected[0])
            assert mixed.y.equal(expected[1])
            assert mixed.transform.rows.equal(whole.transform.rows)
        assert_equal(loader(data, cutmix=1.0).epoch(2, mix=False), plain)

    @pytest.mark.parametrize("augment", ["none", "shift", "resized"])
    def test_a_stop_or_a_disk_changes_nothing(self, tmp_path, augment):
        data = arrays()
        whole = list(loader(data, augment=augment, **CUT).epoch(1))
        assert_equal(loader(data, augment=augment, **CUT).epoch(1, start=2), whole[2:])
        fetched = loader(on_disk(data, tmp_path / "x.npy"), augment=augment, resident=False, **CUT)
        assert_equal(fetched.epoch(1), whole)

    def test_processes_change_nothing(self):
        data = arrays()
        whole = {}
        for batch in loader(data, **CUT).epoch(1):
            whole |= dict(zip(batch.index.tolist(), zip(batch.x, batch.y, strict=True), strict=True))
        for rank in range(3):
            for batch in loader(data, rank=rank, world_size=3, **CUT).epoch(1):
                for i, x, y in zip(batch.index, batch.x, batch.y, strict=True):
                    assert x.equal(whole[int(i)][0])
                    assert y.equal(whole.pop(int(i))[1])
        assert not whole

    def test_keeps_the_memory_layout(self):
        (batch, *_) = loader(arrays(), memory_format=torch.channels_last, **CUT).epoch(0)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("side", [0, 9])
    def test_a_square_that_does_not_fit(self, side):
        with pytest.raises(ConfigError, match=f"expected a cutout of 1 to 8 pixels, got {side}"):
            loader(arrays(), cutout=side)
