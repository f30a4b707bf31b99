"""TensorBoard, an optional extra: pip install "pyengm[tensorboard]"."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from pyengm.errors import StorageError
from pyengm.training.loggers.base import Row
from pyengm.training.loggers.curves import CurveLogger


class TensorBoard(CurveLogger):
    """Writes curves to the folder tensorboard/ of the run, over the batches done: step/NAME and epoch/NAME.

    A thread of the writer does the writing.

    Args:
        folder: The run folder.
        config: The options of the run.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Opens the writer, and drops what was logged for the batches to come."""
        super().start(config, batches, epoch, batch)
        fresh = not self._folder.exists()
        next_step = epoch * batches + batch + 1  # readers drop what was logged for this step and later
        with self._storage_errors():
            writer = self._writer = SummaryWriter(str(self._folder), purge_step=None if fresh else next_step)
            if fresh:
                options = yaml.safe_dump(dict(config), sort_keys=False)
                writer.add_text("config", "".join(f"    {line}\n" for line in options.splitlines()))

    def epoch(self, row: Row, timing: Row) -> None:
        """Adds a point to the curves of the epochs, and flushes them."""
        super().epoch(row, timing)
        with self._storage_errors():
            self._open_writer.flush()

    def add_points(self, values: dict[str, float], done: int) -> None:
        """Adds a point to each of the curves."""
        with self._storage_errors():
            for name, value in values.items():
                self._open_writer.add_scalar(name, value, done)

    def close(self) -> None:
        """Closes the writer."""
        if self._writer is not None:
            with self._storage_errors():
                self._writer.close()

    @property
    def _open_writer(self) -> SummaryWriter:
        if self._writer is None:
            raise RuntimeError("the logger has no writer yet: call start before step and epoch")
        return self._writer

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of the thread, maybe at an earlier call
            raise StorageError(f"cannot write {self._folder}: {error}") from error
