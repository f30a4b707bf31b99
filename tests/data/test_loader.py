"""The loader: order, augmentation, shares of processes, prefetching."""

import os
import threading

import numpy as np
import pytest
import torch
from helpers.image_sets import arrays, on_disk
from helpers.reference_crops import show
from torchvision.transforms import functional as transforms

from pyengm.data import (
    CropFlip,
    Loader,
    ResizedCrop,
    load,
    to_float,
)
from pyengm.data.prefetch import prefetch
from pyengm.errors import ConfigError, DataError


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
    expected = [i for i in order.tolist() if i % 3 == 0]
    assert part.index[Loader(part, 7, **options()).order(2)].tolist() == expected


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
@pytest.mark.parametrize(("images", "world_size"), [(50, 3), (50, 1), (52, 2), (51, 4), (48, 4), (17, 4), (35, 3)])
def test_the_shares_of_a_batch_make_it_up(images, world_size, resident):
    data = arrays(n=images)
    whole = list(Loader(data, 16, **options()).epoch(2))
    pieces = [
        Loader(data, 16, **options(resident=resident, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert {len(piece) for piece in pieces} == {len(whole)}
    evened = world_size > 1 and len(whole[-1].index) < 2 * world_size  # a process without images could not take part
    for start in (0, 1, len(whole)):
        found = list(zip(*(piece.epoch(2, start) for piece in pieces), strict=True))
        assert len(found) == len(whole[start:])
        for position, (batch, shares) in enumerate(zip(whole[start:], found, strict=True), start):
            sizes = [len(piece.index) for piece in shares]
            assert min(sizes) >= (2 if world_size > 1 else 1)
            assert max(sizes) - min(sizes) <= 1
            assert {piece.size for piece in shares} == {sum(sizes)}
            if evened and position >= len(whole) - 2:
                continue
            for name in ("x", "y", "index"):
                assert torch.equal(torch.cat([getattr(piece, name) for piece in shares]), getattr(batch, name))
            assert torch.equal(torch.cat([piece.transform.rows for piece in shares]), batch.transform.rows)
        if start == 0:
            seen = torch.cat([torch.cat([piece.index for piece in shares]) for shares in found])
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
