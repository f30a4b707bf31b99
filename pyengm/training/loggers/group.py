"""All loggers of a run as one."""

from collections.abc import Iterable
from contextlib import ExitStack

from pyengm.training.loggers.base import Logger, Row


class Loggers:
    """Passes every call to several loggers in order. They are open within the context, and each is closed at its end.

    Args:
        loggers: Iterated on entry, so that a logger that cannot be built closes those before it.
    """

    def __init__(self, loggers: Iterable[Logger]):
        self._given = loggers
        self._loggers: list[Logger] = []
        self._closing = ExitStack()

    def __enter__(self) -> "Loggers":
        with self._closing:
            for logger in self._given:
                self._closing.callback(logger.close)
                self._loggers.append(logger)
            self._closing = self._closing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Calls `Logger.start` of each logger."""
        for logger in self._loggers:
            logger.start(config, batches, epoch, batch)

    def step(self, row: Row, timing: Row) -> None:
        """Calls `Logger.step` of each logger."""
        for logger in self._loggers:
            logger.step(row, timing)

    def held_out(self, done: int, total: int) -> None:
        """Calls `Logger.held_out` of each logger."""
        for logger in self._loggers:
            logger.held_out(done, total)

    def epoch(self, row: Row, timing: Row) -> None:
        """Calls `Logger.epoch` of each logger."""
        for logger in self._loggers:
            logger.epoch(row, timing)

    def log(self, line: str) -> None:
        """Calls `Logger.log` of each logger."""
        for logger in self._loggers:
            logger.log(line)
