"""What a run would do and cost, without a trace on the disk: --dry-run."""

from datetime import timedelta
from itertools import islice
from time import perf_counter

import torch
import yaml

from pyengm.evaluation import check_attacks, final_attacks
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents, build_components
from pyengm.training.config import TrainConfig
from pyengm.training.disk_space import check_disk_space, run_size
from pyengm.training.loop import start_epoch
from pyengm.training.run_folder import check_free, next_free
from pyengm.utils.io import format_size

UPDATES = 3  # that are timed, after one that is not


def plan(config: TrainConfig) -> str:
    """Checks a run as `train` does, takes a few of its steps in memory, and says what it would cost.

    Args:
        config: Options; those that are not given follow the recipe.

    Returns:
        The resolved options as YAML, and lines on the images, the model, the time and the disk.

    Raises:
        ConfigError: For options that do not fit together, the data or the machine.
        DataError: For data that cannot be read.
        StorageError: Where the run folder cannot be written, or the disk is too small.
    """
    config = config.resolve()
    runs = len(config.run.seeds) or 1
    config = config.override(seed=config.run.seeds[0], seeds=()) if config.run.seeds else config
    if config.machine.cpu_threads is not None:
        torch.set_num_threads(config.machine.cpu_threads)
    components = build_components(config)
    attacks = final_attacks(config.evaluation.attacks)
    check_attacks(attacks, components.test, config.threats())
    path, size = config.run.out or next_free(config), runs * run_size(config, components)
    check_free(path, f"pyengm train --out {path} --resume")
    check_disk_space(size, path)
    steps, seconds = len(components.batches), seconds_per_batch(config, components)
    total = timedelta(seconds=round(runs * config.schedule.epochs * steps * seconds))
    passes = components.method.info.passes.of(config.attack.steps)
    lines = [
        yaml.safe_dump(config.plain(), sort_keys=False),
        f"images: {images_of(components)}",
        f"model: {config.model.name} with {sum(p.numel() for p in components.model.parameters()):,} weights",
        f"step: {passes[0]:g} forward passes, {passes[1]:g} input gradients, {passes[2]:g} weight gradients; "
        f"{seconds:.3g} s on {components.device}, measured over {UPDATES} updates",
        f"training: {f'{runs} runs of ' if runs > 1 else ''}{config.schedule.epochs} epochs of {steps} steps, about "
        f"{total} without the accuracies after each epoch",
        f"evaluation: {', '.join(attacks)} under {' and '.join(map(str, config.threats()))}",
        f"run folder: {path}, at most {format_size(size)}",
    ]
    return "\n".join(lines)


def images_of(components: TrainComponents) -> str:
    """The numbers of images by their use, and their shape."""
    train, held_out, test = components.batches.data, components.held_out, components.test
    shape = "x".join(map(str, test.shape))
    return (
        f"{len(train):,} to train on, {len(held_out) if held_out else 0:,} held out, {len(test):,} to test, of "
        f"{shape}, {test.num_classes} classes"
    )


def seconds_per_batch(config: TrainConfig, components: TrainComponents) -> float:
    """Seconds that a batch takes in training. The weights of the components change."""
    components.network.train()
    start_epoch(components, 0)
    group = components.step.batches_per_update
    batches = iter(components.batches.epoch(0))
    durations: list[float] = []
    while (found := list(islice(batches, group))) and len(durations) <= UPDATES:
        begin = perf_counter()
        components.step(found, [Key(config.run.seed, 0, batch.index) for batch in found])
        if components.device.type == "cuda":
            torch.cuda.synchronize(components.device)
        durations.append((perf_counter() - begin) / len(found))
    timed = durations[1:] or durations
    return sum(timed) / len(timed)
