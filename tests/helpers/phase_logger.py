"""What a run is doing, noted beside its folder by a logger: --loggers phase_logger:Phases, with this folder in PYTHONPATH."""

import time
from pathlib import Path
from typing import Any

from pyengm.training import Logger

PHASES = ("start-up", "training", "measuring", "writing", "evaluation")  # the third and fourth are the end of an epoch


class Phases(Logger):
    """A line for every phase entered: the time, and the phase."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._path, self._phase = notes_of(folder), ""

    def start(self, config, batches, epoch, batch):
        self._batches = batches
        self._enter("training")

    def step(self, row, timing):
        self._enter("measuring" if row["batch"] == self._batches else "training")

    def epoch(self, row, timing):
        self._enter("writing")

    def close(self):
        self._enter("evaluation")

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            with open(self._path, "a") as file:
                file.write(f"{time.monotonic()} {phase}\n")


def notes_of(folder: Path) -> Path:
    return folder.with_suffix(".phases")


def entered(folder: Path) -> list[tuple[float, str]]:
    """The phases after start-up that the run has entered since its notes were removed, and when."""
    path = notes_of(folder)
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(moment), phase) for moment, phase in map(str.split, lines)]
