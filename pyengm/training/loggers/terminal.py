"""Progress of a run on the terminal: a bar over the epochs, a bar over the batches, a line per epoch."""

from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyengm.training.loggers.base import Logger, Row
from pyengm.utils import terminal

REFRESHES = 2  # per second; drawing takes milliseconds of the training time


class Terminal(Logger):
    """Shows progress bars with the remaining time during the run, and permanent lines."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            refresh_per_second=REFRESHES,
            console=terminal.console,
        )

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Starts the bars."""
        self._epochs = self._bars.add_task("epochs", total=config["schedule"]["epochs"], completed=epoch, note="")
        self._batches = self._bars.add_task("batches", total=batches, completed=batch, note="")
        self._bars.start()

    def step(self, row: Row, timing: Row) -> None:
        """Updates the bars."""
        note = f"loss {row['loss']:.3f}  train {_per_cent(row['train_robust'])}"
        self._bars.update(self._batches, completed=row["batch"], note=note)
        self._bars.update(self._epochs, note=_remaining(timing))

    def epoch(self, row: Row, timing: Row) -> None:
        """Prints the line of the epoch."""
        line = f"epoch {row['epoch'] + 1:3d}  loss {row['loss']:.3f}  train {_per_cent(row['train_robust'])}"
        if "robust" in row:
            line += f"  natural {_per_cent(row['natural'])}  PGD-20 {_per_cent(row['robust'])}"
        line += f"  clipped {_per_cent(row['clipped'])}" if row["clipped"] else ""
        if row.get("catastrophic_overfitting"):
            line += f"  CATASTROPHIC OVERFITTING: PGD on training images fell to {_per_cent(row['train_pgd'])}"
        self.log(line + ("  best" if row["best"] else ""))
        self._bars.update(self._epochs, completed=row["epoch"] + 1, note=_remaining(timing))

    def log(self, line: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bars."""
        self._bars.stop()


def _per_cent(share: float) -> str:
    return f"{100 * share:5.1f}%"


def _remaining(timing: Row) -> str:
    seconds = timing["seconds_to_finish"]
    return "" if not seconds else f"{timedelta(seconds=round(seconds))} left"
