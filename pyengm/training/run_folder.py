"""The files of a run.

config.yaml         all options, resolved
metrics.jsonl       metrics, one line per epoch, the same for a resumed run (its keys: `Logger`)
timing.jsonl        wall-clock times, one line per epoch (its keys: `Logger`)
best.safetensors    weights of the best epoch, last.safetensors those of the last one
snapshots/          weights after some of the epochs, as epoch-NNNN.safetensors, where the options name them
probe/              gradients of fixed training images after each epoch, as epoch-NNNN.npz (`ProbeResult`)
instances/          gradient, step and perturbation of every training image in each epoch, as epoch-NNNN.npz
checkpoints/        the state to resume from, written after the other files of an epoch
results.json        the final evaluation; results.txt its table, curves.png the learning curves
environment.json    versions, machine, git state, command line and digests of the images, of the start and each resume
autoattack/         partial results of AutoAttack, from which an interrupted evaluation resumes
evaluations/        the results of pyengm evaluate, by number, as .json and .txt

NNNN counts the epochs that are done, from 1: epoch-0010 is after ten epochs, which the line with epoch 9 in
metrics.jsonl is of.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from pyengm.data import ImageDataset
from pyengm.errors import CheckpointError, ConfigError, StorageError
from pyengm.models import CheckpointInfo, save_checkpoint
from pyengm.training.checkpoints import Checkpoints
from pyengm.training.config import TrainConfig
from pyengm.training.data_facts import check_same_images, describe_images
from pyengm.training.environment import describe
from pyengm.training.launcher import job_name
from pyengm.utils.distributed import on_rank0
from pyengm.utils.file_format import RESULTS_FORMAT, RUN_FORMAT, check_format
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.locks import file_lock


class RunFolder:
    """The paths of a run, and methods to read and write its files. A new run overwrites nothing.

    Args:
        path: The run folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.results = self.path / "results.json"
        self.table = self.path / "results.txt"
        self.environment = self.path / "environment.json"
        self.job = self.path / ".job"  # the torchrun job that started the run, whose restarts resume it
        self.curves = self.path / "curves.png"
        self.snapshots = self.path / "snapshots"
        self.probe = self.path / "probe"
        self.instances = self.path / "instances"
        self.autoattack = self.path / "autoattack"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Makes the folder `out`, or the next free one below runs/, with config.yaml, which is complete or absent.

        Raises ConfigError where the folder exists and is not empty, StorageError where it cannot be written.
        """
        path = config.run.out or next_free(config)
        check_free(path, f"pyengm train --out {path} --resume")
        run, is_new = cls(path), not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.note_job()
            atomic_write(run.config, config.save)
        except OSError as error:
            with suppress(OSError):
                run.job.unlink(missing_ok=True)
                if is_new:
                    path.rmdir()
            reason = error if isinstance(error, StorageError) else error.strerror
            raise StorageError(f"cannot start the run in {path}: {reason}; choose another --out") from error
        return run

    def note_job(self) -> None:
        """Writes which torchrun job starts the run, if one does."""
        if (name := job_name()) is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            self.job.write_text(name + "\n")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. Raises ConfigError where there is none, DataError for another format."""
        run = cls(path)
        if not run.config.is_file():
            several = " (it holds the runs of several seeds: give --seeds too)" if any(run.path.glob("seed-*")) else ""
            raise ConfigError(f"{path} is no run folder of pyengm: it has no {run.config.name}{several}")
        for start in run._starts():
            check_format(start.get("format"), RUN_FORMAT, run.environment)
        return run

    def _starts(self) -> list[dict[str, Any]]:
        """The environments so far; none before the first start, or from a damaged file, on which nothing depends."""
        try:
            return [dict(start) for start in json.loads(self.environment.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run against other processes within the context, and removes partial files of killed ones.

        Raises:
            ConfigError: Where another process holds the lock.
            StorageError: Where the folder cannot be written to.
        """
        with ExitStack() as stack:
            on_rank0(lambda: self._lock(stack))
            yield

    def _lock(self, stack: ExitStack) -> None:
        stack.enter_context(file_lock(self.path, wait=False))
        with suppress(OSError):
            for folder in (self.path, self.snapshots, self.probe, self.instances):
                for partial in folder.glob(".*.tmp"):
                    partial.unlink(missing_ok=True)

    def add_environment(self, data: Mapping[str, ImageDataset]) -> None:
        """Adds the environment of this start, or resume, of the run to its file, with the images by their use.

        Raises ConfigError where the run began with other images.
        """
        starts = self._starts()
        images = {use: describe_images(one) for use, one in data.items()}
        if starts:
            check_same_images(starts[-1].get("data", {}), images)
        text = json.dumps([*starts, describe() | {"data": images}], indent=2) + "\n"
        atomic_write(self.environment, lambda path: path.write_text(text))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The metrics of the epochs so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def save_weights(self, path: Path, model: nn.Module, info: CheckpointInfo) -> None:
        """Writes weights to `best` or `last`."""
        save_checkpoint(path, model, info)

    def checkpoints(self, keep: int) -> Checkpoints:
        """The checkpoints that the run can resume from; the newest `keep` of them are kept."""
        return Checkpoints(self.path / "checkpoints", keep)

    def save_results(self, results: dict[str, Any], table: str) -> None:
        """Writes the final evaluation, and its table as text."""
        text = json.dumps(results, indent=2) + "\n"
        atomic_write(self.table, lambda path: path.write_text(table))
        atomic_write(self.results, lambda path: path.write_text(text))

    def add_evaluation(self, results: dict[str, Any], table: str) -> Path:
        """Writes a further evaluation, and its table as text, under the next free number; returns the file."""
        folder = self.path / "evaluations"
        make_dirs(folder)
        try:
            path = next(path for i in count(1) if _is_new(path := folder / f"{i:03d}.json"))
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error}") from error
        text = json.dumps(results, indent=2) + "\n"
        atomic_write(path.with_suffix(".txt"), lambda new: new.write_text(table))
        atomic_write(path, lambda new: new.write_text(text))
        return path

    def read_results(self) -> dict[str, Any]:
        """The final evaluation. Raises CheckpointError for a damaged file, and DataError for one of another format."""
        try:
            results = dict(json.loads(self.results.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.results} is damaged ({error}); delete it, and --resume evaluates the run again"
            ) from error
        check_format(results.get("format"), RESULTS_FORMAT, self.results)
        return {"format": RESULTS_FORMAT, **results}


def next_free(config: TrainConfig) -> Path:
    """The next free folder below runs/ for a run whose options name none."""
    stem = f"{Path(config.data.name).name.replace(':', '.')}-{config.method.name}-{config.optimizer.name}"
    return next(path for path in (Path("runs") / f"{stem}-{i:03d}" for i in count(1)) if not path.exists())


def out_of(config: TrainConfig) -> Path:
    """The run folder that the options name. Raises ConfigError where they name none."""
    if config.run.out is None:
        raise ConfigError("out is None; expected the folder of the run: give --out")
    return config.run.out


def check_free(path: Path, again: str) -> None:
    """Checks that a folder does not exist or is empty.

    Files of a start that was killed before its config.yaml was complete do not count.

    Args:
        path: The folder.
        again: The command that resumes the run in it.

    Raises:
        ConfigError: For a folder with other files.
        StorageError: Where the path cannot be used.
    """
    try:
        is_free = not path.exists() or (path.is_dir() and all(map(_is_of_a_killed_start, path.iterdir())))
    except OSError as error:  # a name that is too long, or a folder that this user may not read
        raise StorageError(f"cannot start a run in {path}: {error.strerror}; choose another --out") from error
    if not is_free:
        raise ConfigError(
            f"the run folder {path} exists and is not overwritten; choose another --out, or resume the run in it: "
            f"{again}"
        )


def _is_new(path: Path) -> bool:
    """Makes an empty file, unless there is one: two processes get different files."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _is_of_a_killed_start(path: Path) -> bool:
    run = RunFolder(path.parent)
    return path == run.job or (path.name.startswith(f".{run.config.name}.") and path.suffix == ".tmp")
