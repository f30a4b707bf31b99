"""All loggers of a run as one."""

from collections.abc import Iterable
from contextlib import ExitStack

from pyengm.training.loggers.base import Logger, Row


class Loggers:
    """Hands on what it is told, in their order. While it is entered they are open; then each is closed, come what may.

    loggers: taken one by one on entry, so that those before one that cannot be built are closed.
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
        for logger in self._loggers:
            logger.start(config, batches, epoch, batch)

    def step(self, row: Row, timing: Row) -> None:
        for logger in self._loggers:
            logger.step(row, timing)

    def epoch(self, row: Row, timing: Row) -> None:
        for logger in self._loggers:
            logger.epoch(row, timing)

    def log(self, line: str) -> None:
        for logger in self._loggers:
            logger.log(line)
