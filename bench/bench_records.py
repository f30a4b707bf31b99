"""What an epoch takes longer with the probe, snapshots and the log of the images: python bench/bench_records.py.

ResNet-18 of width 16 with batch norm, PGD-10, 50,000 images of 3 x 32 x 32, a probe of 1,000. The log of the images
belongs to methods that keep something for every image, so ATTA takes the ten steps. An epoch is made of its parts:
steps with and without the log take turns, half of them before the probe and half after it; then come a snapshot and
the file of the log for 50,000 images. A probe with exact norms, every tenth epoch, takes a backward pass for each
image; with --exact it is timed on 128 images and scaled.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import torch

from pyengm.data import ImageDataset
from pyengm.methods import DatasetSpec, LogsInstances
from pyengm.training import RunFolder, TrainComponents, TrainConfig, build_components
from pyengm.training.builders import probe_images
from pyengm.training.instance_files import save_instances
from pyengm.training.loop import save_weights, update
from pyengm.training.probe import EXACT_EVERY, measure_probe

IMAGES, PROBE, EXACT = 50_000, 1_000, 128  # images of an epoch, of the probe, of the timed probe with exact norms


def random_images() -> tuple[ImageDataset, ImageDataset]:
    """Training and test images in the shape of CIFAR-10's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1_200, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = [str(number) for number in range(10)]
    whole = ImageDataset(images, torch.arange(1_200) % 10, names, "random", "train")
    return whole.subset(range(1_000)), whole.subset(range(1_000, 1_200), split="test")


def seconds(function: Callable[[], object]) -> float:
    """The time of a call."""
    begin = perf_counter()
    function()
    return perf_counter() - begin


class Steps:
    """Times of steps without and with the log of the images, which take turns.

    Args:
        config: Resolved options.
        components: The components of the run, whose method logs.
    """

    def __init__(self, config: TrainConfig, components: TrainComponents):
        self.config, self.components = config, components
        self.method = cast(LogsInstances, components.method)
        self.log = self.method.instances
        self.batches = iter(components.batches.epoch(0))
        self.times: dict[bool, list[float]] = {False: [], True: []}

    def take(self, rounds: int) -> None:
        """Takes a step that is not timed, then pairs of steps, each on one batch."""
        self.components.network.train()
        update(self.config, self.components, [next(self.batches)], 0)
        for number in range(rounds):
            batch = next(self.batches)
            for logs in (False, True) if number % 2 else (True, False):
                vars(self.method).pop("instances", None)
                if logs:
                    self.method.instances = self.log
                self.times[logs].append(seconds(lambda batch=batch: update(self.config, self.components, [batch], 0)))
        self.method.instances = self.log


def main() -> None:
    """Prints the times, and their shares of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exact", action="store_true")
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
    assert components.probe is not None
    steps = Steps(config, components)
    steps.take(options.rounds)
    probe = seconds(lambda: measure_probe(config, components, components.probe, 0))
    steps.take(options.rounds)
    plain = median(steps.times[False])
    difference = median(b - a for a, b in zip(*steps.times.values(), strict=True))
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
    if options.exact:
        data = probe_images(components.batches.data, EXACT, 32)
        taken = PROBE / EXACT * seconds(lambda: measure_probe(config, components, data, EXACT_EVERY - 1))
        print(f"{'probe with exact norms':35s} {taken:9.3f} s  {taken / epoch:8.3%}, every {EXACT_EVERY}th epoch")


if __name__ == "__main__":
    main()
