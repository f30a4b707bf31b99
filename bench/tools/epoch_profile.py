"""Epochs of PGD adversarial training as `pyengm train` runs them, and where their time goes beyond the steps."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tools.paired_steps import EPS, SGD, STEP, K, Setting
from tools.timed_training import time_epochs
from torch.optim.lr_scheduler import LambdaLR

from pyengm.data import Batch
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents, build_components
from pyengm.training.config import TrainConfig
from pyengm.training.loop import fit, report_step
from pyengm.training.metric_sums import measure
from pyengm.training.run_folder import RunFolder
from pyengm.training.steps import StepStats


class Training:
    """Calls train one epoch each, through `fit`: augmentation, steps, sums, progress on a terminal, and at the end of
    the epoch PGD-5 on some training images, metrics, weights and state on disk. Images are as many random batches.

    batch_seconds: of each call, what the batches took, fetching included; the rest of a call comes once an epoch.
    """

    def __init__(self, setting: Setting, batches: int, folder: Path, **options: object):
        common = {"data": "cifar10", "model": "resnet18", "method": "pgd_at", "optimizer": "msgd", **SGD}
        common |= {"eps": EPS, "step_size": STEP, "attack_steps": K}
        common |= {"width": setting.width, "batch_size": setting.n, "epochs": 1, "select_on": "none"}
        common |= {"device": setting.device, "precision": setting.precision}
        self.config = TrainConfig.from_flat(**common | options).resolve()
        self.setting, self.batches, self.folder = setting, batches, folder
        self.parts = self.build_components()
        self._times = time_epochs(self.parts.batches)
        self.batch_seconds: list[float] = []

    def build_components(self) -> TrainComponents:
        with mock.patch("pyengm.training.builders.load", return_value=self.setting.make_images(self.batches)):
            return build_components(self.config)

    def __call__(self) -> float:
        """The mean loss."""
        self._times.clear()
        run = RunFolder.create(self.config.override(out=self.folder / str(len(self.batch_seconds))))
        fit(self.config, self.parts, run)
        self.batch_seconds.append(self._times[0])
        return run.read_metrics()[0]["loss"]


@dataclass(frozen=True)
class Anatomy:
    """Where the time of an epoch went, on a CPU.

    alone, within: seconds of each step, alone and within the loop. between: seconds per step outside the steps, by
    what they went for. once: seconds at the end of the epoch.
    """

    alone: list[float]
    within: list[float]
    between: dict[str, float]
    once: float


@dataclass
class PairedStep:
    """A step of one batch that calls a function in its place."""

    function: Callable[[Sequence[Batch], Sequence[Key]], StepStats]
    batches_per_update: int = 1

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        return self.function(batches, keys)


class Dissected:
    """A `Training`, each step of which is followed by that of a twin on a batch that lies ready, without a loop."""

    def __init__(self, training: Training):
        self.training, self.parts = training, training.parts
        self.twin = training.build_components()
        self.ready = [*self.twin.batches.epoch(0)]
        self._step = self.parts.step
        self.parts.step = PairedStep(self._both)
        self._alone: list[float] = []
        self._within: list[float] = []

    def __call__(self) -> Anatomy:
        self._alone, self._within = [], []
        with self._watched() as spent:
            start = time.perf_counter()
            self.training()
            whole = time.perf_counter() - start
        batches = self.training.batch_seconds[-1]
        between = batches - sum(self._alone) - sum(self._within)
        n = len(self._alone)
        parts = {name: seconds / n for name, seconds in spent.items()}
        parts["the rest of the loop"] = between / n - sum(parts.values())
        return Anatomy(self._alone, self._within, parts, whole - batches)

    def _both(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        start = time.perf_counter()
        used = self._step(batches, keys)
        middle = time.perf_counter()
        batch, twin = self.ready[len(self._alone)], self.twin
        key = Key(self.training.config.run.seed, 0, batch.index)
        twin.step([batch], [key])
        self._within.append(middle - start)
        self._alone.append(time.perf_counter() - middle)
        return used

    @contextmanager
    def _watched(self) -> Iterator[dict[str, float]]:
        """Adds up the seconds of the loop's own parts meanwhile."""
        spent: dict[str, float] = defaultdict(float)

        def timed(name: str, function: Callable) -> Callable:
            def call(*arguments: object, **options: object) -> object:
                start = time.perf_counter()
                try:
                    return function(*arguments, **options)
                finally:
                    spent[name] += time.perf_counter() - start

            return call

        epoch_of = self.parts.batches.epoch
        passes = []

        def epoch(*arguments: int, **options: int) -> Iterator[object]:
            passes.append(arguments)
            batches = epoch_of(*arguments, **options)
            if len(passes) > 1:  # PGD-5 on some training images, after the batches
                yield from batches
                return
            fetch, end = timed("fetching, crops and flips", next), object()
            while (batch := fetch(batches, end)) is not end:
                yield batch

        with (
            mock.patch.object(self.parts.batches, "epoch", epoch),
            mock.patch("pyengm.training.loop.measure", timed("sums", measure)),
            mock.patch("pyengm.training.loop.report_step", timed("logging", report_step)),
            mock.patch.object(LambdaLR, "step", timed("learning rate", LambdaLR.step)),
        ):
            yield spent
