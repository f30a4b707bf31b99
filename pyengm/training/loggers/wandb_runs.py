"""Weights & Biases, an optional extra: pip install "pyengm[wandb]"."""

from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]  # an extra

from pyengm.training.loggers.base import Row
from pyengm.training.loggers.curves import CurveLogger
from pyengm.utils.io import atomic_write


class WandB(CurveLogger):
    """Records curves over the batches done as a run of wandb, which is configured by its own environment variables.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and the others apply. A resumed run continues the run of wandb,
    whose identity is in RUN/wandb/run-id; what is logged again is dropped there, as wandb's steps only grow.

    Args:
        folder: The run folder.
        config: The options of the run.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._folder, self._config = folder, config
        self._run: Any = None

    def start(self, config: Row, batches: int, epoch: int, batch: int) -> None:
        """Begins the run of wandb, or continues it."""
        super().start(config, batches, epoch, batch)
        record = self._folder / "wandb" / "run-id"
        record.parent.mkdir(exist_ok=True)
        known = record.read_text().strip() if record.exists() else None
        self._run = wandb.init(
            id=known,
            resume="allow",
            name=self._folder.name,
            dir=str(self._folder),
            config=self._config,
            project=None if known else wandb.env.get_project() or "pyengm",
        )
        atomic_write(record, lambda path: path.write_text(f"{self._run.id}\n"))

    def add_points(self, values: dict[str, float], done: int) -> None:
        """Adds a point to each of the curves."""
        self._run.log(values, step=done)

    def close(self) -> None:
        """Ends the run of wandb, which waits for its uploads."""
        if self._run is not None:
            self._run.finish()
