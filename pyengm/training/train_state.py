"""The state of a run, saved to a checkpoint and restored from it.

Random numbers of the run need no state, as they are counter-based. torch's own generators are saved for models that
draw from them.
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
from pyengm.utils.distributed import all_reduce_sum, on_rank0, rank, world_size


@dataclass
class TrainState:
    """The progress of a run.

    Attributes:
        sums: Sums over the batches of the epoch so far, (15,) float64, see `SUMS`.
        epoch: The next epoch, counted from 0.
        batch: The next batch of that epoch.
        best: The best accuracy so far.
        train_pgd: Accuracy under PGD on some training images after the last epoch.
        epochs_without_improvement: Number of epochs since the best one.
        stopped: Whether the run has ended early, by catastrophic overfitting or by patience.
    """

    sums: Tensor
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    train_pgd: float | None = None
    epochs_without_improvement: int = 0
    stopped: bool = False

    def advance_epoch(self) -> None:
        """Moves to the start of the next epoch."""
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, torch.zeros_like(self.sums)


def save_state(config: TrainConfig, components: TrainComponents, run: RunFolder, state: TrainState) -> None:
    """Writes a checkpoint; all processes of a run call this.

    Args:
        config: Resolved options.
        components: The components of the run.
        run: The run folder.
        state: The progress of the run, with the sums of this process.

    Raises:
        StorageError: Where the checkpoint cannot be written; earlier checkpoints stay as they are.
    """
    shared = {
        "state": vars(state) | {"sums": read_sums(all_reduce_sum(state.sums))},
        "model": components.model.state_dict(),
        "optimizer": components.optimizer.state_dict(),
        "schedule": components.schedule.state_dict(),
        "method": components.method.extra_state(),
        "averaging": components.averaging.state_dict(),
        "scaler": None if components.scaler is None else components.scaler.state_dict(),
    }
    part = {
        "sums": read_sums(state.sums),
        "generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state(components.device) if components.device.type == "cuda" else None,
        "method": components.method.extra_state() if components.method.info.rank_local_state else None,
        "buffers": {name: buffer.state_dict() for name, buffer in components.method.buffers().items()},
    }
    run.checkpoints(config.run.keep_checkpoints).save(state.epoch, state.batch, shared, part)


def restore(config: TrainConfig, components: TrainComponents, run: RunFolder) -> TrainState:
    """Restores the components from the newest checkpoint.

    With as many processes as wrote it the run continues exactly; another number divides the work anew.

    Args:
        config: Resolved options.
        components: The components of the run, which are changed.
        run: The run folder.

    Returns:
        The progress of the run, that of a new run where there is no checkpoint.

    Raises:
        CheckpointError: Where no checkpoint is whole, or they are of another architecture or other images.
    """
    saved = run.checkpoints(config.run.keep_checkpoints).load(components.device)
    if saved is None and on_rank0(lambda: len(run.read_metrics())) > 1:  # a start that was killed may leave one line
        raise CheckpointError(
            f"{run.path} has metrics of several epochs, but no checkpoint to resume from; the weights are in {run.last}"
        )
    if saved is None:
        return TrainState(zero_sums(components.device))
    shared, same_world = saved.shared, len(saved.parts) == world_size()
    check_state(components.model, shared["model"], str(run.path))
    components.model.load_state_dict(shared["model"])
    components.optimizer.load_state_dict(shared["optimizer"])
    components.schedule.load_state_dict(shared["schedule"])
    components.averaging.load_state_dict(shared["averaging"])
    if components.scaler is not None:
        components.scaler.load_state_dict(shared["scaler"])
    part = saved.parts[rank()] if same_world else {}
    sums = part.get("sums", shared["state"]["sums"] if rank() == 0 else None)
    state = TrainState(**shared["state"] | {"sums": _restored_sums(sums, components.device)})
    components.method.load_extra_state(part.get("method") or shared["method"])
    local_index = components.batches.local_index(min(state.epoch, config.schedule.epochs - 1))
    for name, buffer in components.method.buffers().items():
        buffer.redistribute([part["buffers"][name] for part in saved.parts], local_index)
    if same_world:
        _restore_generators(part, components.device)
    return state


def _restored_sums(sums: dict[str, float] | None, device: torch.device) -> Tensor:
    return zero_sums(device) if sums is None else write_sums(sums, device)


def _restore_generators(part: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(part["generator"])
    if device.type == "cuda" and part["cuda_generator"] is not None:  # None where the run was on a CPU
        torch.cuda.set_rng_state(part["cuda_generator"], device)
