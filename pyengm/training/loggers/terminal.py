"""Progress of a run on the terminal: bars over the epochs and their batches, and a line of a table per epoch."""

from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from pyengm.training.loggers.base import Logger, Row
from pyengm.utils import terminal

REFRESHES = 2  # per second; drawing takes milliseconds of the training time
HEADER = "epoch    loss  train %  natural %  PGD-20 %  clipped %"


class Terminal(Logger):
    """Shows progress bars with the remaining time during the run, as wide as the terminal, and permanent lines."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            refresh_per_second=REFRESHES,
            console=terminal.console,
            expand=True,
            transient=True,
        )

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Starts the bars, and prints the head of the table."""
        self._count = batches
        self._epochs = self._bars.add_task("epochs", total=config["schedule"]["epochs"], completed=epoch, note="")
        self._batches = self._bars.add_task("batches", total=batches, completed=batch, note="")
        self._bars.start()
        self.log(HEADER)

    def step(self, row: Row, timing: Row) -> None:
        """Updates the bars."""
        note = f"loss {row['loss']:.3f} train {100 * row['train_robust']:.1f} %"
        self._bars.update(self._batches, description="batches", completed=row["batch"], total=self._count, note=note)
        self._bars.update(self._epochs, note=_remaining(timing))

    def held_out(self, done: int, total: int) -> None:
        """Shows the held-out images in place of the batches."""
        self._bars.update(self._batches, description="held out", completed=done, total=total, note="PGD-20")

    def epoch(self, row: Row, timing: Row) -> None:
        """Prints the line of the epoch."""
        shares = {"train_robust": 7, "natural": 9, "robust": 8, "clipped": 9}  # the widths of the columns
        cells = [f"{_per_cent(row.get(name)):>{width}}" for name, width in shares.items()]
        self.log(
            "  ".join([f"{row['epoch'] + 1:5d}", f"{row['loss']:6.3f}", *cells]) + ("  best" if row["best"] else "")
        )
        if row.get("catastrophic_overfitting"):
            self.log(f"CATASTROPHIC OVERFITTING: PGD on training images fell to {_per_cent(row['train_pgd'])} %")
        self._bars.update(self._epochs, completed=row["epoch"] + 1, note=_remaining(timing))

    def log(self, line: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bars."""
        self._bars.stop()


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _remaining(timing: Row) -> str:
    seconds = timing["seconds_to_finish"]
    return "" if not seconds else f"{timedelta(seconds=round(seconds))} left"
