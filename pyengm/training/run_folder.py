"""What a run leaves on disk.

config.yaml         the options, every one filled in
metrics.jsonl       one line per epoch
best.safetensors    weights of the best epoch, last.safetensors those of the last one
state.pt            all that resuming needs, written whole after the other files of an epoch
results.json        the final evaluation; curves.png the learning curves
autoattack/         what AutoAttack has found so far, so that an interrupted evaluation goes on
"""

import json
import pickle
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyengm.errors import CheckpointError, ConfigError
from pyengm.models import CheckpointInfo, check_state, save_checkpoint, write_atomically
from pyengm.training.config import TrainConfig


class RunFolder:
    """The paths of a run and how they are written. Nothing that exists is overwritten by a new run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.state = self.path / "state.pt"
        self.results = self.path / "results.json"
        self.curves = self.path / "curves.png"
        self.autoattack = self.path / "autoattack"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """A new folder at config.out, or the next free one below runs/. Raises ConfigError where one exists."""
        path = config.out or next_free(config)
        check_free(path, f"pyengm train --out {path} --resume")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        config.save(run.config)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run. Raises ConfigError where there is none."""
        run = cls(path)
        if not run.config.is_file():
            several = " (it holds the runs of several seeds: give --seeds too)" if any(run.path.glob("seed-*")) else ""
            raise ConfigError(f"{path} is no run folder of pyengm: it has no {run.config.name}{several}")
        return run

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Appends one epoch's line."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dict per epoch so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def cut_metrics(self, epoch: int) -> None:
        """Drops the lines of `epoch` and later: a killed run may have written them before its state."""
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines()[:epoch]
            write_atomically(self.metrics, lambda path: path.write_text("".join(f"{line}\n" for line in lines)))

    def save_weights(self, path: Path, model: nn.Module, info: CheckpointInfo) -> None:
        save_checkpoint(path, model, info)

    def save_state(self, state: dict[str, Any]) -> None:
        write_atomically(self.state, lambda path: torch.save(state, path))

    def load_state(self, model: nn.Module, device: torch.device) -> dict[str, Any] | None:
        """The saved state, whose weights fit the model; None where the run was stopped before any was saved.

        Raises CheckpointError for a damaged file or one of another architecture.
        """
        if not self.state.exists():
            return None
        try:
            state = torch.load(self.state, map_location=device, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.state} is damaged ({error}); the weights in {self.last} are whole if that file loads"
            ) from error
        check_state(model, state["model"], str(self.state))
        return state

    def save_results(self, results: dict[str, Any]) -> None:
        text = json.dumps(results, indent=2) + "\n"
        write_atomically(self.results, lambda path: path.write_text(text))

    def read_results(self) -> dict[str, Any]:
        """What `save_results` wrote. Raises CheckpointError for a damaged file."""
        try:
            return json.loads(self.results.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{self.results} is damaged ({error}); delete it, and the run with --resume is evaluated again"
            ) from error


def next_free(config: TrainConfig) -> Path:
    """The folder of a run that is given none: the next free one of its kind below runs/."""
    stem = f"{Path(config.data).name}-{config.method}-{config.optimizer}"
    return next(path for path in (Path("runs") / f"{stem}-{i:03d}" for i in count(1)) if not path.exists())


def check_free(path: Path, again: str) -> None:
    """Raises ConfigError for a folder that holds something. again: the command that goes on with what is in it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"the run folder {path} exists and is not overwritten; choose another --out, or go on with the "
            f"run in it: {again}"
        )
