"""A line of JSON per epoch: metrics.jsonl and timing.jsonl."""

import errno
import json
import os
from pathlib import Path

from pyengm.errors import StorageError
from pyengm.training.loggers.base import Logger, Row
from pyengm.utils.io import atomic_write


class JsonLines(Logger):
    """Writes a line of JSON per epoch to each of two files.

    Args:
        metrics: File of the metrics, which depend on the run alone.
        timing: File of the times, which differ between two runs of the same options.
    """

    def __init__(self, metrics: Path, timing: Path):
        self._metrics, self._timing = metrics, timing

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Removes the lines of the epochs from `epoch` on, which are trained again."""
        for path in (self._metrics, self._timing):
            if path.exists():
                kept = "".join(f"{line}\n" for line in path.read_text().splitlines()[:epoch])
                atomic_write(path, lambda new, kept=kept: new.write_text(kept))

    def epoch(self, row: Row, timing: Row) -> None:
        """Appends a line to each file."""
        _append(self._metrics, row)
        _append(self._timing, {"epoch": row["epoch"], **timing})


def _append(path: Path, row: Row) -> None:
    """Adds the line whole or not at all, and flushes it before the checkpoint that relies on it is written."""
    line = json.dumps(row).encode() + b"\n"
    try:
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
