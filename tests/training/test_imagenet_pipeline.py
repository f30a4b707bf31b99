"""A folder of JPEGs, trained on as ImageNet is: decoded once, resized crops, a small perturbation kept per image."""

import numpy as np
import pytest
import torch
from helpers.runs import always_stop
from PIL import Image
from safetensors.torch import load_file

from pyengm.data import ResizedCrop
from pyengm.evaluation import accuracy
from pyengm.models import load_checkpoint
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit

TRAIN, TEST = 12, 4  # images of a class
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise with more of one colour, JPEGs of 80 to 107 pixels upright and lying."""
    root, random = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for colour, name in enumerate(CLASSES):
        for split, count in (("train", TRAIN), ("test", TEST)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(96, 20, (80 + 9 * (i % 4), 80, 3))
                pixels[..., colour] += 64
                pixels = pixels.clip(0, 255).astype(np.uint8)
                image = Image.fromarray(pixels if i % 2 else pixels.transpose(1, 0, 2))
                image.save(root / split / name / f"{i}.jpg", quality=90)
    return root


@pytest.fixture
def config(folder, tmp_path_factory):
    """The recipe of ATAS for ImageNet but for the model and the length."""
    return TrainConfig.from_flat(
        data=str(folder),
        data_dir=tmp_path_factory.getbasetemp() / "decoded",
        image_size=64,
        method="atas",
        method_options=("warmup=1",),
        model="cnn4",
        width=4,
        lr=0.01,
        batch_size=8,
        epochs=3,
    )


def run_in(path, config):
    config = config.override(out=path).resolve()
    return config, RunFolder.create(config)


def test_every_part_is_for_large_images(config):
    components = build_components(config.override(select_on="val").resolve())
    assert not components.batches.resident
    assert components.batches.data.shape == (3, 74, 74)
    assert components.test.shape == components.held_out.shape == (3, 64, 64)
    batch = next(components.batches.epoch(0))
    assert batch.x.shape == (8, 3, 64, 64)
    assert len({(int(h), int(w)) for h, w in zip(batch.transform.height, batch.transform.width, strict=True)}) > 1
    assert components.method.delta.values.shape == (len(components.batches.data), 3, 32, 32)
    assert components.method.delta.values.dtype == torch.float16
    centre = (slice(None), slice(None), slice(5, 69), slice(5, 69))
    assert components.held_out.images.equal(
        build_components(config.resolve()).batches.data.images[components.held_out.index][centre]
    )


@pytest.mark.filterwarnings("ignore:catastrophic")
def test_trains_and_goes_on_bitwise_after_a_stop_at_any_batch(config, tmp_path, monkeypatch):
    whole_config, whole = run_in(tmp_path / "whole", config)
    components = build_components(whole_config)
    first = components.method.delta.values.clone()
    fit(whole_config, components, whole)
    kept = components.method.delta.values
    eps = components.method.threat.eps
    seen, index = torch.zeros(len(kept), 1, 32, 32), components.batches.data.index
    for epoch in range(3):
        crop = ResizedCrop.draw(index, (74, 74), (64, 64), seed=whole_config.run.seed, epoch=epoch)
        seen += crop.scatter_window(torch.ones(len(kept), 1, 64, 64), torch.zeros_like(seen))
    seen, changed = (seen > 0).expand_as(kept), kept != first
    assert 0.5 < seen.float().mean() < 1
    assert not changed[~seen].any()
    assert changed[seen].float().mean() > 0.9  # some are at the bound, before and after
    assert kept.isfinite().all()
    assert kept.abs().max() <= eps * (1 + 2**-10)  # rounded to float16

    stopped_config, stopped = run_in(tmp_path / "stopped", config)
    with monkeypatch.context() as patch:
        always_stop(patch)
        for _ in range(3 * len(components.batches)):
            with pytest.raises(Interrupted):
                fit(stopped_config, build_components(stopped_config), stopped)
    fit(stopped_config, build_components(stopped_config), stopped)
    weights, expected = load_file(stopped.last), load_file(whole.last)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert value.equal(weights[name]), name
    states = [run.checkpoints(2).load(torch.device("cpu")).parts[0]["buffers"] for run in (whole, stopped)]
    for name in ("delta", "v"):
        assert states[0][name]["values"].equal(states[1][name]["values"])
    assert whole.read_metrics() == stopped.read_metrics()
    assert len(whole.read_metrics()) == 3


@pytest.mark.filterwarnings("ignore:catastrophic")
@pytest.mark.parametrize(
    ("method", "options"),
    [("atas", ("warmup=1",)), ("fgsm_pgi", ()), ("fgsm_pgi", ("resolution=32", "dtype=float16"))],
)
def test_learns(config, tmp_path, method, options):
    """Three colours, with what is kept at a low resolution and at that of the canvas."""
    config, run = run_in(
        tmp_path / "run", config.override(method=method, method_options=options, eps=2 / 255, epochs=16, width=8)
    )
    components = build_components(config)
    fit(config, components, run)
    model, _ = load_checkpoint(run.last)
    assert accuracy(model, components.test, None, seed=0, device=torch.device("cpu")) > 0.6  # chance: 1/3
