"""Where a run stands, and everything that the rest of it depends on, to a checkpoint and back.

Random numbers need no state: they are counter-based. torch's own generators are here for models that draw from them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengm.errors import CheckpointError
from pyengm.models import check_state
from pyengm.training.builders import TrainComponents
from pyengm.training.config import TrainConfig
from pyengm.training.metric_sums import read_sums, write_sums, zero_sums
from pyengm.training.run_folder import RunFolder
from pyengm.utils.distributed import all_reduce_sum, on_rank0, rank, world


@dataclass
class TrainState:
    """Where a run stands: the next batch, the sums over the batches of its epoch so far, the best accuracy yet."""

    sums: Tensor  # see `SUMS`
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    train_pgd: float | None = None  # accuracy under PGD on some training images, after the last epoch
    epochs_without_improvement: int = 0  # epochs since the best one
    stopped: bool = False  # for good, by catastrophic overfitting or out of patience


def save_state(config: TrainConfig, components: TrainComponents, run: RunFolder, at: TrainState) -> None:
    """Writes a checkpoint; where several processes run, all call this.

    Raises StorageError where that is not possible; the checkpoints before stay as they are.
    """
    shared = {
        "position": vars(at) | {"sums": read_sums(all_reduce_sum(at.sums))},
        "model": components.model.state_dict(),
        "optimizer": components.optimizer.state_dict(),
        "schedule": components.schedule.state_dict(),
        "method": components.method.extra_state(),
        "averaging": components.averaging.state_dict(),
        "scaler": None if components.scaler is None else components.scaler.state_dict(),
    }
    part = {
        "sums": read_sums(at.sums),
        "generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state(components.device) if components.device.type == "cuda" else None,
        "method": components.method.extra_state() if components.method.rank_local_state else None,
        "stores": {name: store.state_dict() for name, store in components.method.stores().items()},
    }
    run.checkpoints(config.run.keep_checkpoints).save(at.epoch, at.batch, shared, part)


def restore(config: TrainConfig, components: TrainComponents, run: RunFolder) -> TrainState:
    """Puts the newest checkpoint back and returns where it stands; the start where there is none.

    As many processes as wrote it go on exactly; another number shares the work anew. Raises CheckpointError where no
    checkpoint is whole, or they are of another architecture or other images.
    """
    saved = run.checkpoints(config.run.keep_checkpoints).load(components.device)
    if saved is None and on_rank0(lambda: len(run.read_metrics())) > 1:  # a start that was killed may leave one line
        raise CheckpointError(
            f"{run.path} has figures of several epochs, but no checkpoint to go on from; the weights are in {run.last}"
        )
    if saved is None:
        return TrainState(zero_sums(components.device))
    state, same = saved.shared, len(saved.parts) == world()
    check_state(components.model, state["model"], str(run.path))
    components.model.load_state_dict(state["model"])
    components.optimizer.load_state_dict(state["optimizer"])
    components.schedule.load_state_dict(state["schedule"])
    components.averaging.load_state_dict(state["averaging"])
    if components.scaler is not None:
        components.scaler.load_state_dict(state["scaler"])
    at = TrainState(**state["position"])
    part = saved.parts[rank()] if same else {}
    at.sums = restored_sums(part.get("sums", at.sums if rank() == 0 else None), components.device)
    components.method.load_extra_state(part.get("method") or state["method"])
    kept = components.batches.kept(min(at.epoch, config.schedule.epochs - 1))
    for name, store in components.method.stores().items():
        store.load([part["stores"][name] for part in saved.parts], kept)
    if same:
        restore_generators(part, components.device)
    return at


def restored_sums(sums: dict[str, float] | None, device: torch.device) -> Tensor:
    return zero_sums(device) if sums is None else write_sums(sums, device)


def restore_generators(part: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(part["generator"])
    if device.type == "cuda" and part["cuda_generator"] is not None:  # None where the run was on a CPU
        torch.cuda.set_rng_state(part["cuda_generator"], device)
