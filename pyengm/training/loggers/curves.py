"""Rows as named curves over the batches done, which experiment trackers record."""

from abc import abstractmethod

from pyengm.training.loggers.base import Logger, Row


class CurveLogger(Logger):
    """Base of the loggers of experiment trackers: a point of step/NAME and epoch/NAME for every value of a row.

    Subclasses that override `start` call that of this class.
    """

    _batches = 0

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Notes the number of batches of an epoch."""
        self._batches = batches

    def step(self, row: Row, timing: Row) -> None:
        """Adds a point to the curves of the steps."""
        self._add("step", {**row, **timing}, row["epoch"] * self._batches + row["batch"])

    def epoch(self, row: Row, timing: Row) -> None:
        """Adds a point to the curves of the epochs."""
        self._add("epoch", {**row, **timing}, (row["epoch"] + 1) * self._batches)

    def _add(self, group: str, row: Row, done: int) -> None:
        measured = {name: value for name, value in row.items() if name not in ("epoch", "batch") and value is not None}
        self.add_points({f"{group}/{name}": float(value) for name, value in measured.items()}, done)

    @abstractmethod
    def add_points(self, values: dict[str, float], done: int) -> None:
        """Records values by the names of their curves, after that many batches."""
