"""Progress of a run on the terminal: a bar over the epochs, a bar over the batches, a line per epoch."""

from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pyengm.distributed import rank


class Progress:
    """Shown while it is entered. epochs, batches: how many there are of each (batches per epoch)."""

    def __init__(self, epochs: int, batches: int):
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=rank() != 0,
        )
        self._epochs = self._bars.add_task("epochs", total=epochs, note="")
        self._batches = self._bars.add_task("batches", total=batches, note="")

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def start(self, epoch: int, batch: int) -> None:
        self._bars.update(self._epochs, completed=epoch)
        self._bars.reset(self._batches, completed=batch)

    def step(self, sums: Mapping[str, float], batch: int) -> None:
        pictures = sums["pictures"]
        note = f"loss {sums['loss'] / pictures:.3f}  train {100 * sums['robust'] / pictures:.1f} %"
        self._bars.update(self._batches, completed=batch, note=note)

    def finish(self, row: Mapping[str, float]) -> None:
        line = f"epoch {row['epoch'] + 1:3d}  loss {row['loss']:.3f}  train {_per_cent(row['train_robust'])}"
        if "robust" in row:
            line += f"  natural {_per_cent(row['natural'])}  PGD-20 {_per_cent(row['robust'])}"
        line += f"  clipped {_per_cent(row['clipped'])}" if row["clipped"] else ""
        if row.get("catastrophe"):
            line += f"  CATASTROPHIC OVERFITTING: PGD on training pictures fell to {_per_cent(row['train_pgd'])}"
        self.say(line + ("  best" if row["best"] else ""))
        self._bars.update(self._epochs, completed=row["epoch"] + 1)

    def say(self, line: str) -> None:
        if rank() == 0:
            self._bars.console.print(line, highlight=False, soft_wrap=True)


def _per_cent(share: float) -> str:
    return f"{100 * share:5.1f}%"
