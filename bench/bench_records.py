"""What an epoch takes longer with the probe, snapshots and the log of the images: python bench/bench_records.py.

ResNet-18 of width 16 with batch norm, PGD-10, 50,000 images of 3 x 32 x 32, a probe of 1,000. The log of the images
belongs to methods that keep something for every image, so ATTA takes the ten steps. An epoch is made of its parts:
steps, half of them before the probe and half after it; what a step does for the log, which is far below the noise of a
step, by itself; a snapshot; and the file of the log for 50,000 images. All times are CPU times of the one thread.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from time import process_time
from typing import cast

import torch

from pyengm.data import ImageDataset
from pyengm.methods import DatasetSpec, LogsInstances
from pyengm.training import RunFolder, TrainComponents, TrainConfig, build_components
from pyengm.training.instance_files import save_instances
from pyengm.training.loop import save_weights, update
from pyengm.training.probe import measure_probe

IMAGES, PROBE = 50_000, 1_000  # images of an epoch, and of the probe


def random_images() -> tuple[ImageDataset, ImageDataset]:
    """Training and test images in the shape of CIFAR-10's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1_200, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = [str(number) for number in range(10)]
    whole = ImageDataset(images, torch.arange(1_200) % 10, names, "random", "train")
    return whole.subset(range(1_000)), whole.subset(range(1_000, 1_200), split="test")


def seconds(function: Callable[[], object]) -> float:
    """The CPU time of a call, which other processes on the machine change little."""
    begin = process_time()
    function()
    return process_time() - begin


def times_of_steps(config: TrainConfig, components: TrainComponents, first: int, count: int) -> list[float]:
    """Seconds of the steps on so many batches of an epoch from number `first` on, after one that is not timed."""
    components.network.train()
    batches = islice(components.batches.epoch(0), first, first + count + 1)
    return [seconds(lambda batch=batch: update(config, components, [batch], 0)) for batch in batches][1:]


def time_of_log(components: TrainComponents, n: int) -> float:
    """Median seconds of what a step of n images does for the log alone."""
    method = cast(LogsInstances, components.method)
    index, x = components.batches.data.index[:n], torch.rand(n, *components.batches.shape)
    grad = torch.rand_like(x)

    def log() -> None:
        method.note_instances(index, torch.empty_like(x).copy_(grad), 0.1, x)

    return median(seconds(log) for _ in range(50))


def main() -> None:
    """Prints the times, and their shares of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig.from_flat(
        data="bench_records:random_images",
        method="atta",
        attack_steps=10,
        step_size=2 / 255,
        model="resnet18",
        width=16,
        optimizer="msgd",
        batch_size=64,
        epochs=1,
        milestones=(),
        select_on="none",
        snapshots=(1,),
        probe=PROBE,
        instance_log=True,
        device="cpu",
    ).resolve()
    components = build_components(config)
    images = components.probe
    assert images is not None
    steps = times_of_steps(config, components, 0, options.rounds)
    probe = seconds(lambda: measure_probe(config, components, images))
    plain = median(steps + times_of_steps(config, components, 0, options.rounds))
    difference = time_of_log(components, config.schedule.batch_size)
    epoch = plain * IMAGES / config.schedule.batch_size
    spec = DatasetSpec(torch.arange(IMAGES), components.batches.shape)
    whole = type("Whole", (LogsInstances,), {})()
    whole.log_instances(spec)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        extra = {
            "log of the images, in the steps": difference * IMAGES / config.schedule.batch_size,
            "log of the images, its file": median(
                seconds(lambda: save_instances(run.instances / "epoch-0001.npz", whole)) for _ in range(5)
            ),
            "snapshot": median(
                seconds(lambda: save_weights(config, components, run, components.model, 0, is_best=False))
                - seconds(lambda: save_weights(config, components, run, components.model, 9, is_best=False))
                for _ in range(5)
            ),
            f"probe of {PROBE} images": probe,
        }
    print(f"epoch of {IMAGES} images: {epoch:.0f} s, {plain:.3f} s a step of {config.schedule.batch_size}")
    for name, taken in extra.items():
        print(f"{name:35s} {taken:9.3f} s  {taken / epoch:8.3%}")
    print(f"{'together':35s} {sum(extra.values()):9.3f} s  {sum(extra.values()) / epoch:8.3%}")


if __name__ == "__main__":
    main()
