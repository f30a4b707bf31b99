"""Where a run stands, and everything that the rest of it depends on, to a checkpoint and back.

Random numbers need no state: they are counter-based. torch's own generators are here for models that draw from them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengm.distributed import by_first, rank, summed, world
from pyengm.errors import CheckpointError
from pyengm.models import check_state
from pyengm.training.config import TrainConfig
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import Parts
from pyengm.training.sums import no_sums, read_sums, write_sums


@dataclass
class Position:
    """Where a run stands: the next batch, the sums over the batches of its epoch so far, the best accuracy yet."""

    sums: Tensor  # see `SUMS`
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    train_pgd: float | None = None  # accuracy under PGD on some training pictures, after the last epoch
    stale: int = 0  # epochs since the best one
    stopped: bool = False  # for good, by catastrophic overfitting or out of patience


def save_state(config: TrainConfig, parts: Parts, run: RunFolder, at: Position) -> None:
    """Writes a checkpoint; where several processes run, all call this.

    Raises StorageError where that is not possible; the checkpoints before stay as they are.
    """
    shared = {
        "position": vars(at) | {"sums": read_sums(summed(at.sums))},
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "method": parts.method.own_state(),
        "averaging": parts.averaging.state_dict(),
        "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
    }
    part = {
        "sums": read_sums(at.sums),
        "generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None,
        "method": parts.method.own_state() if parts.method.differs_by_process else None,
        "stores": {name: store.state_dict() for name, store in parts.method.stores().items()},
    }
    run.checkpoints(config.keep).save(at.epoch, at.batch, shared, part)


def restore(config: TrainConfig, parts: Parts, run: RunFolder) -> Position:
    """Puts the newest checkpoint back and returns where it stands; the start where there is none.

    As many processes as wrote it go on exactly; another number shares the work anew. Raises CheckpointError where no
    checkpoint is whole, or they are of another architecture or other pictures.
    """
    saved = run.checkpoints(config.keep).load(parts.device)
    if saved is None and by_first(lambda: len(run.read_metrics())) > 1:  # a start that was killed may leave one line
        raise CheckpointError(
            f"{run.path} has figures of several epochs, but no checkpoint to go on from; the weights are in {run.last}"
        )
    if saved is None:
        return Position(no_sums(parts.device))
    state, same = saved.shared, len(saved.parts) == world()
    check_state(parts.model, state["model"], str(run.path))
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    parts.averaging.load_state_dict(state["averaging"])
    if parts.scaler is not None:
        parts.scaler.load_state_dict(state["scaler"])
    at = Position(**state["position"])
    part = saved.parts[rank()] if same else {}
    at.sums = restored_sums(part.get("sums", at.sums if rank() == 0 else None), parts.device)
    parts.method.load_own_state(part.get("method") or state["method"])
    kept = parts.batches.kept(min(at.epoch, config.epochs - 1))
    for name, store in parts.method.stores().items():
        store.load([part["stores"][name] for part in saved.parts], kept)
    if same:
        restore_generators(part, parts.device)
    return at


def restored_sums(sums: dict[str, float] | None, device: torch.device) -> Tensor:
    return no_sums(device) if sums is None else write_sums(sums, device)


def restore_generators(part: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(part["generator"])
    if device.type == "cuda" and part["cuda_generator"] is not None:  # None where the run was on a CPU
        torch.cuda.set_rng_state(part["cuda_generator"], device)
