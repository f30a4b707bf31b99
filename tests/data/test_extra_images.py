"""Extra training images: their file, and their share of every batch."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.image_sets import arrays, on_disk

from pyengm.data import ImageDataset, Loader, load_extra
from pyengm.errors import ConfigError, DataError


def extra_images(n=30, shape=(3, 8, 8), classes=5):
    return ImageDataset(
        torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
        torch.arange(n) % classes,
        [str(k) for k in range(classes)],
        "synthetic",
        "extra",
    )


def loader(data, extra, fraction=0.7, batch_size=10, **options):
    options = {"device": "cpu", "seed": 3, "augment": "none", "shuffle": True, **options}
    return Loader(data, batch_size, extra=extra, extra_fraction=fraction, **options)


class TestFile:
    @pytest.mark.parametrize(("images", "labels"), [("image", "label"), ("images", "labels")])
    @pytest.mark.parametrize("last", [True, False])
    def test_reads_what_authors_publish(self, images, labels, last, tmp_path):
        data, extra = arrays(), extra_images()
        pixels = extra.images.numpy()
        file = {images: pixels.transpose(0, 2, 3, 1) if last else pixels, labels: extra.labels.numpy()}
        np.savez(tmp_path / "extra.npz", **file)
        found = load_extra(tmp_path / "extra.npz", data)
        assert found.images.equal(extra.images)
        assert found.images.is_contiguous()
        assert found.labels.equal(extra.labels)
        assert found.classes == data.classes
        assert found.index.equal(torch.arange(30))

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ({"x": np.zeros(3)}, "expected one array named image or images; it has x"),
            ({"image": np.zeros((2, 8, 8, 3), np.float32), "label": [0, 1]}, "got float32"),
            ({"image": np.zeros((2, 9, 8, 3), np.uint8), "label": [0, 1]}, r"shape \(N, 8, 8, 3\).*\(2, 9, 8, 3\)"),
            ({"image": np.zeros((2, 8, 8, 3), np.uint8), "label": [0, 5]}, "labels from 0 to 4"),
            ({"image": np.zeros((2, 8, 8, 3), np.uint8), "label": [0]}, "one label for each of 2 images"),
            ({"image": np.zeros((2, 8, 8, 3), np.uint8), "label": [0.0, 1.0]}, "whole numbers"),
        ],
    )
    def test_says_what_is_wrong(self, file, message, tmp_path):
        np.savez(tmp_path / "extra.npz", **file)
        with pytest.raises(DataError, match=message):
            load_extra(tmp_path / "extra.npz", arrays())

    @pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"text"])
    def test_names_a_file_that_cannot_be_read(self, content, tmp_path):
        path = tmp_path / "extra.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"extra\.npz: expected an \.npz file"):
            load_extra(path, arrays())


class TestBatches:
    def test_every_batch_has_its_share(self):
        data, extra = arrays(), extra_images()
        batches = loader(data, extra)
        for epoch in range(3):
            found = list(batches.epoch(epoch))
            assert len(batches) == len(found) == 5  # as without extra images
            for batch in found:
                own = batch.index < 50
                assert own.sum() == 3
                assert len(batch.x) == batch.size == 10
                assert len(batch.index.unique()) == 10
                expected = torch.where(own, batch.index, 0), torch.where(own, 0, batch.index - 50)
                pixels = torch.where(
                    own.view(-1, 1, 1, 1), data.images[expected[0]].float(), extra.images[expected[1]].float()
                )
                assert torch.equal(batch.x, pixels / 255)
                assert torch.equal(batch.y, torch.where(own, data.labels[expected[0]], extra.labels[expected[1]]))

    def test_all_images_come_equally_often(self):
        """50 images by 3 are 16 batches a round, 30 by 7 are 4: what is left over differs from round to round."""
        batches = loader(arrays(), extra_images())
        epochs = 160
        counts = Counter(int(k) for e in range(epochs) for batch in batches.epoch(e) for k in batch.index)
        assert sum(counts.values()) == epochs * 50
        for kind, mean, per_round in (
            (range(50), 5 * 3 * epochs / 50, 48 / 50),
            (range(50, 80), 35 * epochs / 30, 28 / 30),
        ):
            seen = np.array([counts[k] for k in kind])
            # Each round takes an image with probability per_round: the count's deviation is that of a binomial.
            deviation = np.sqrt(mean / per_round * per_round * (1 - per_round))
            assert abs(seen - mean).max() < 5 * deviation + 1

    def test_a_round_ends_before_an_image_comes_again(self):
        batches = loader(arrays(48), extra_images())  # 48 images by 3: rounds of 16 batches
        found = [batch.index[:3] for e in range(16) for batch in batches.epoch(e)]
        assert len(found) == 16 * 5
        for start in range(0, 80, 16):
            assert torch.cat(found[start : start + 16]).unique().numel() == 48

    def test_depends_on_seed_and_epoch_alone(self):
        data, extra = arrays(), extra_images()
        first, again = loader(data, extra), loader(data, extra, augment="shift")
        for epoch in (7, 2):
            assert first.order(epoch).equal(again.order(epoch))
        assert not first.order(2).equal(first.order(3))
        assert not first.order(2).equal(loader(data, extra, seed=4).order(2))
        whole = [batch.index for batch in first.epoch(2)]
        for k, batch in enumerate(first.epoch(2, start=3)):
            assert batch.index.equal(whole[3 + k])

    def test_augmentation_and_index_follow_the_image(self):
        data, extra = arrays(), extra_images()
        plain = {int(i): x for b in loader(data, extra).epoch(0) for i, x in zip(b.index, b.x, strict=True)}
        for batch in loader(data, extra, augment="shift").epoch(0):
            clean = torch.stack([plain[int(i)] for i in batch.index])
            padded = torch.nn.functional.pad(clean, (1, 1, 1, 1))
            for x, canvas in zip(batch.x, padded, strict=True):
                windows = canvas.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
                assert any(torch.equal(x, w) or torch.equal(x, w.flip(2)) for w in windows)

    def test_processes_share_the_batches(self):
        data, extra = arrays(), extra_images()
        whole = loader(data, extra)
        parts = [loader(data, extra, rank=r, world_size=2) for r in range(2)]
        for together, *shares in zip(whole.epoch(1), *(part.epoch(1) for part in parts), strict=True):
            assert torch.cat([share.index for share in shares]).equal(together.index)

    def test_images_on_disk(self, tmp_path):
        data, extra = arrays(), extra_images()
        for one, other in zip(
            loader(data, extra).epoch(0), loader(on_disk(data, tmp_path / "x.npy"), extra).epoch(0), strict=True
        ):
            assert torch.equal(one.x, other.x)

    @pytest.mark.parametrize(
        ("fraction", "batch_size", "message"),
        [(0.0, 10, "got 0 and 10"), (1.0, 10, "got 10 and 0"), (0.7, 50, "from 1 to 30 extra .* got 35 and 15")],
    )
    def test_shares_that_cannot_be(self, fraction, batch_size, message):
        with pytest.raises(ConfigError, match=message):
            loader(arrays(), extra_images(), fraction, batch_size)

    def test_other_images(self):
        for other in (extra_images(shape=(1, 8, 8)), extra_images(classes=4)):
            with pytest.raises(DataError, match="synthetic: expected"):
                loader(arrays(), other)
