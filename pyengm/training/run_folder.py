"""What a run leaves on disk.

config.yaml         the options, every one filled in
metrics.jsonl       one line per epoch, the same for a resumed run (its keys: `Logger`)
timing.jsonl        one line per epoch of what the clock said
best.safetensors    weights of the best epoch, last.safetensors those of the last one
checkpoints/        all that resuming needs, written whole after the other files of an epoch
results.json        the final evaluation; results.txt its table, curves.png the learning curves
environment.json    versions, machine, git state and command line, of the start and of each resume
autoattack/         what AutoAttack has found so far, so that an interrupted evaluation goes on
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from pyengm.errors import CheckpointError, ConfigError, StorageError
from pyengm.models import CheckpointInfo, save_checkpoint
from pyengm.training.checkpoints import Checkpoints
from pyengm.training.config import TrainConfig
from pyengm.training.environment import describe
from pyengm.training.launcher import job_name
from pyengm.utils.distributed import on_rank0
from pyengm.utils.io import atomic_write
from pyengm.utils.locks import file_lock


class RunFolder:
    """The paths of a run and how they are written. Nothing that exists is overwritten by a new run."""

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
        self.job = self.path / ".job"  # the torchrun job that began the run, whose restarts go on with it
        self.curves = self.path / "curves.png"
        self.autoattack = self.path / "autoattack"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """A new folder at config.out, or the next free one below runs/. Raises ConfigError where one exists.

        config.yaml is in it whole or not at all, and makes it a run. Raises StorageError where it cannot be written.
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
            raise StorageError(f"cannot begin the run in {path}: {error}; make room or choose another --out") from error
        return run

    def note_job(self) -> None:
        """Notes which torchrun job begins the run, if one does."""
        if (name := job_name()) is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            self.job.write_text(name + "\n")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. Raises ConfigError where there is none."""
        run = cls(path)
        if not run.config.is_file():
            several = " (it holds the runs of several seeds: give --seeds too)" if any(run.path.glob("seed-*")) else ""
            raise ConfigError(f"{path} is no run folder of pyengm: it has no {run.config.name}{several}")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While it is entered, no other process writes to this run; what killed ones left half written is removed.

        Raises ConfigError where another one does, StorageError where the folder cannot be written to.
        """
        with ExitStack() as stack:
            on_rank0(lambda: self._lock(stack))
            yield

    def _lock(self, stack: ExitStack) -> None:
        stack.enter_context(file_lock(self.path, wait=False))
        with suppress(OSError):
            for partial in self.path.glob(".*.tmp"):
                partial.unlink(missing_ok=True)

    def add_environment(self) -> None:
        """Notes on what this start, or resume, of the run goes on."""
        try:
            starts = list(json.loads(self.environment.read_text()))
        except (OSError, ValueError):  # the first start, or a damaged file that nothing depends on
            starts = []
        text = json.dumps([*starts, describe()], indent=2) + "\n"
        atomic_write(self.environment, lambda path: path.write_text(text))

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dict per epoch so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def save_weights(self, path: Path, model: nn.Module, info: CheckpointInfo) -> None:
        save_checkpoint(path, model, info)

    def checkpoints(self, keep: int) -> Checkpoints:
        """The states that the run can go on from, of which the newest `keep` stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def save_results(self, results: dict[str, Any], table: str) -> None:
        """Writes the final evaluation, and its table as text."""
        text = json.dumps(results, indent=2) + "\n"
        atomic_write(self.table, lambda path: path.write_text(table))
        atomic_write(self.results, lambda path: path.write_text(text))

    def read_results(self) -> dict[str, Any]:
        """What `save_results` wrote. Raises CheckpointError for a damaged file."""
        try:
            return json.loads(self.results.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{self.results} is damaged ({error}); delete it, and the run with --resume is evaluated again"
            ) from error


def next_free(config: TrainConfig) -> Path:
    """The folder of a run that is given none: the next free one of its kind below runs/."""
    stem = f"{Path(config.data.name).name}-{config.method.name}-{config.optimizer.name}"
    return next(path for path in (Path("runs") / f"{stem}-{i:03d}" for i in count(1)) if not path.exists())


def check_free(path: Path, again: str) -> None:
    """Raises ConfigError for a folder that holds something. again: the command that goes on with what is in it.

    What a start leaves that was killed before its config.yaml was whole is nothing.
    """
    if path.exists() and (not path.is_dir() or not all(map(_is_left_of_a_start, path.iterdir()))):
        raise ConfigError(
            f"the run folder {path} exists and is not overwritten; choose another --out, or go on with the "
            f"run in it: {again}"
        )


def _is_left_of_a_start(path: Path) -> bool:
    run = RunFolder(path.parent)
    return path == run.job or (path.name.startswith(f".{run.config.name}.") and path.suffix == ".tmp")
