"""A logger of a user, whose errors do not end the run."""

import warnings
from contextlib import suppress
from typing import Any

from pyengm.errors import PyengmError
from pyengm.training.loggers.base import Logger, Row
from pyengm.utils.import_object import describe_error


class Guarded(Logger):
    """Passes every call to a logger. After an error it warns once, closes the logger, and calls it no more.

    Errors of pyengm, such as a full disk, are raised.

    Args:
        name: The name of the logger, for the warning.
        logger: The logger.
    """

    def __init__(self, name: str, logger: Logger):
        self._name, self._logger = name, logger
        self._dropped = False

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Calls `start` of the logger."""
        self._call("start", config, batches, epoch, batch)

    def step(self, row: Row, timing: Row) -> None:
        """Calls `step` of the logger."""
        self._call("step", row, timing)

    def held_out(self, done: int, total: int) -> None:
        """Calls `held_out` of the logger."""
        self._call("held_out", done, total)

    def epoch(self, row: Row, timing: Row) -> None:
        """Calls `epoch` of the logger."""
        self._call("epoch", row, timing)

    def log(self, line: str) -> None:
        """Calls `log` of the logger."""
        self._call("log", line)

    def close(self) -> None:
        """Calls `close` of the logger."""
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._dropped:
            return
        try:
            getattr(self._logger, method)(*arguments)
        except PyengmError:
            raise
        except Exception as error:  # any error of the user's code
            self._dropped = True
            warnings.warn(
                f"the logger {self._name} failed in {method} with {describe_error(error)}: the run goes on without it",
                stacklevel=2,
            )
            if method != "close":
                with suppress(Exception):
                    self._logger.close()
