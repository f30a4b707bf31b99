"""A logger that notes the phases of a run beside its folder: --loggers phase_logger:PhaseLogger.

The folder of this module must be on PYTHONPATH.
"""

import time
from pathlib import Path
from typing import Any

from pyengm.training import Logger

PHASES = (
    "start-up",
    "training",
    "measuring",
    "writing",
    "evaluation",
)  # "measuring" and "writing": the end of an epoch


class PhaseLogger(Logger):
    """Writes a line at the start of every phase: the time in seconds, and the phase."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._path, self._phase = phases_path(folder), ""

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


def phases_path(folder: Path) -> Path:
    """The file with the phases of the run in this folder."""
    return folder.with_suffix(".phases")


def read_phases(folder: Path) -> list[tuple[float, str]]:
    """Start times and names of the phases after start-up, since the file was last removed."""
    path = phases_path(folder)
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(moment), phase) for moment, phase in map(str.split, lines)]
