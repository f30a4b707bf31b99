"""Epochs of PGD adversarial training as `pyengm train` runs them, and their time outside the steps by its causes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

from torch.optim.lr_scheduler import LambdaLR

from pyengm.data import Batch
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents, build_components
from pyengm.training.config import TrainConfig
from pyengm.training.loop import fit, report_step
from pyengm.training.metric_sums import measure
from pyengm.training.run_folder import RunFolder
from pyengm.training.steps import Step, StepStats
from tools.paired_steps import EPS, SGD, STEP_SIZE, STEPS, Setting
from tools.timed_training import timed_epochs

P = ParamSpec("P")
R = TypeVar("R")


class EpochRunner:
    """Each call trains one epoch through `fit` on random images.

    An epoch has augmentation, steps, sums and a progress bar, and at its end PGD-5 on some training images, metrics,
    weights and state on disk.

    Args:
        setting: Network, precision and batch.
        batches: Batches of an epoch.
        folder: Folder for the runs.
        **options: Options of `TrainConfig` that differ from PGD-10 training with momentum SGD.

    Attributes:
        batch_seconds: For each call the time of the batches with loading; the rest of a call occurs once an epoch.
    """

    def __init__(self, setting: Setting, batches: int, folder: Path, **options: Any):
        common = {"data": "cifar10", "model": "resnet18", "method": "pgd_at", "optimizer": "msgd", **SGD}
        common |= {"eps": EPS, "step_size": STEP_SIZE, "attack_steps": STEPS}
        common |= {"width": setting.width, "batch_size": setting.n, "epochs": 1, "select_on": "none"}
        common |= {"device": setting.device, "precision": setting.precision}
        self.config = TrainConfig.from_flat(**common | options).resolve()
        self.setting, self.batches, self.folder = setting, batches, folder
        self.components = self.build_components()
        self.batch_seconds: list[float] = []

    def build_components(self) -> TrainComponents:
        with mock.patch("pyengm.training.builders.load", return_value=self.setting.make_images(self.batches)):
            return build_components(self.config)

    def __call__(self) -> float:
        """The mean loss of the epoch."""
        run = RunFolder.create(self.config.override(out=self.folder / str(len(self.batch_seconds))))
        with timed_epochs(self.components.batches) as seconds:
            fit(self.config, self.components, run)
        self.batch_seconds.append(seconds[0])
        return run.read_metrics()[0]["loss"]


@dataclass(frozen=True)
class EpochProfile:
    """Where the time of an epoch on a CPU goes.

    Args:
        alone: Seconds of each step outside the loop.
        in_loop: Seconds of each step within the loop.
        overhead: Seconds per step outside the steps, by cause.
        epoch_end: Seconds at the end of the epoch.
    """

    alone: list[float]
    in_loop: list[float]
    overhead: dict[str, float]
    epoch_end: float


@dataclass
class DoubledStep:
    """A training step that is followed by the same step of a second model on a batch that is ready.

    Args:
        step: The step of the loop.
        twin: The step of the second model.
        ready: The batches of the second model.
        alone: Receives the seconds of the second step.
        in_loop: Receives the seconds of the first step.
    """

    step: Step
    twin: Step
    ready: list[Batch]
    alone: list[float] = field(default_factory=list)
    in_loop: list[float] = field(default_factory=list)
    batches_per_update = 1

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        start = time.perf_counter()
        stats = self.step(batches, keys)
        middle = time.perf_counter()
        batch = self.ready[len(self.alone)]
        self.twin([batch], [Key(keys[0].seed, 0, batch.index)])
        self.in_loop.append(middle - start)
        self.alone.append(time.perf_counter() - middle)
        return stats


class ProfiledEpoch:
    """Each call trains an epoch with doubled steps.

    Args:
        runner: Trains the epochs.
    """

    def __init__(self, runner: EpochRunner):
        twin = runner.build_components()
        self.runner, self.components = runner, runner.components
        self.step = DoubledStep(self.components.step, twin.step, [*twin.batches.epoch(0)])
        self.components.step = self.step

    def __call__(self) -> EpochProfile:
        self.step.alone, self.step.in_loop = [], []
        with self._timed_parts() as spent:
            start = time.perf_counter()
            self.runner()
            whole = time.perf_counter() - start
        alone, in_loop = self.step.alone, self.step.in_loop
        batches = self.runner.batch_seconds[-1]
        outside = batches - sum(alone) - sum(in_loop)
        overhead = {name: seconds / len(alone) for name, seconds in spent.items()}
        overhead["the rest of the loop"] = outside / len(alone) - sum(overhead.values())
        return EpochProfile(alone, in_loop, overhead, whole - batches)

    @contextmanager
    def _timed_parts(self) -> Iterator[dict[str, float]]:
        """Within the context, adds up the seconds of each part of the loop outside the steps."""
        spent: dict[str, float] = defaultdict(float)

        def timed(name: str, function: Callable[P, R]) -> Callable[P, R]:
            def call(*arguments: P.args, **options: P.kwargs) -> R:
                start = time.perf_counter()
                try:
                    return function(*arguments, **options)
                finally:
                    spent[name] += time.perf_counter() - start

            return call

        original_epoch, calls = self.components.batches.epoch, []

        def epoch(*arguments: int, **options: int) -> Iterator[Batch]:
            calls.append(arguments)
            batches = original_epoch(*arguments, **options)
            if len(calls) > 1:  # PGD-5 on some training images, after the batches
                yield from batches
                return
            fetch = timed("fetching, crops and flips", lambda: next(batches, None))
            while (batch := fetch()) is not None:
                yield batch

        with (
            mock.patch.object(self.components.batches, "epoch", epoch),
            mock.patch("pyengm.training.loop.measure", timed("sums", measure)),
            mock.patch("pyengm.training.loop.report_step", timed("logging", report_step)),
            mock.patch.object(LambdaLR, "step", timed("learning rate", LambdaLR.step)),
        ):
            yield spent
