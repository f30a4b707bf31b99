"""The training loop."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyengm.checks import Checks
from pyengm.data import Batch
from pyengm.distributed import any_of, average_buffers, average_gradients, rank, summed, world
from pyengm.errors import NonFiniteError
from pyengm.evaluation import accuracy, attack_named
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.training.catastrophe import is_catastrophe, training_accuracy
from pyengm.training.config import TrainConfig
from pyengm.training.groups import closure_step, groups, takes_closures
from pyengm.training.progress import Progress
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import Parts
from pyengm.training.state import Position, restore, save_state
from pyengm.training.stop import Interrupted, StopRequest
from pyengm.training.sums import measure, no_sums, read_sums

LOOK_EVERY = 20  # batches of a GPU


def fit(config: TrainConfig, parts: Parts, run: RunFolder) -> None:
    """Trains to the end, from the run's saved state if it has one.

    Raises Interrupted after Ctrl-C, with the state saved, and NonFiniteError when a loss is nan or infinite; the
    files of the epochs before stay as they are.
    A step never waits for a GPU. What it checks is read every `LOOK_EVERY` batches and before anything is written.
    """
    at = restore(config, parts, run)
    every = look_every(parts.device)
    with StopRequest() as stop, Progress(config.epochs, len(parts.batches)) as progress:
        for epoch in range(at.epoch, config.epochs):
            if at.stopped:
                return
            progress.start(epoch, at.batch)
            parts.network.train()
            if at.batch == 0:
                for store in parts.method.stores().values():
                    store.follow(parts.batches.kept(epoch))
                parts.method.start_epoch(parts.network, epoch)
            checks = Checks()
            for group in groups(parts.batches.epoch(epoch, start=at.batch), parts.optimizer):
                try:
                    with checks.at(f"epoch {epoch + 1}, batch {at.batch + 1}"):
                        at.sums += step(config, parts, group, epoch)
                    at.batch += len(group)
                    looking = at.batch % every < len(group) or at.batch == len(parts.batches)
                    asked = any_of(stop.asked) if looking else stop.asked and world() == 1
                    if asked or looking:
                        checks.read()
                        progress.step(read_sums(at.sums), at.batch)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}. {left(run)}") from error
                if asked:
                    save_state(config, parts, run, at)
                    raise Interrupted(f"stopped after batch {at.batch} of epoch {epoch + 1}; {how_to_resume(run)}")
            finish_epoch(config, parts, run, at, progress)


def look_every(device: torch.device) -> int:
    """Batches from one look at what a device has computed to the next; the host waits for each."""
    return 1 if device.type == "cpu" else LOOK_EVERY


def step(config: TrainConfig, parts: Parts, group: list[Batch], epoch: int) -> Tensor:
    """One batch, or the several of an optimiser with an inner loop: attack, per-example losses, weights, update.

    Returns the sums over its pictures, (4,).
    """
    keys = [Key(config.seed, epoch, batch.index) for batch in group]
    average = partial(average_gradients, list(parts.model.parameters()))
    if takes_closures(parts.optimizer):
        used = closure_step(parts.method, parts.network, parts.optimizer, group, keys, average)
    else:
        (batch,), (key,) = group, keys
        pictures = batch.x, batch.y, key, batch.transform
        options = {"scaler": parts.scaler, "average": partial(average, len(batch.y))}
        used = parts.train_step(parts.method, parts.network, parts.optimizer, *pictures, **options)
    average_buffers(parts.model)
    for _ in group:
        parts.schedule.step()
    return measure(used, torch.cat([batch.y for batch in group]))


def finish_epoch(config: TrainConfig, parts: Parts, run: RunFolder, at: Position, progress: Progress) -> None:
    """Measures the held-out pictures, then writes metrics, checkpoints and, last of all, the state."""
    sums = read_sums(summed(at.sums))
    pictures = sums["pictures"]
    row = {
        "epoch": at.epoch,
        "lr": parts.schedule.get_last_lr()[0],
        "loss": sums["loss"] / pictures,
        "train_robust": sums["robust"] / pictures,
        "clipped": sums["clipped"] / pictures,
    }
    score = math.inf
    if parts.held_out is not None:
        attack = attack_named("pgd20", config.threats()[0])
        measured = {"seed": config.seed, "device": parts.device}
        row["natural"] = accuracy(parts.model, parts.held_out, None, **measured)
        row["robust"] = accuracy(parts.model, parts.held_out, attack, **measured)
        score = row["natural"] if config.method == "natural" else row["robust"]
    if at.epoch == parts.method.restarts_at:
        at.train_pgd = None  # the weights are young again, and no match for those of before
    if config.method != "natural":
        row["train_pgd"] = training_accuracy(config, parts, at.epoch)
        row["catastrophe"] = is_catastrophe(at.train_pgd, row["train_pgd"])
        if row["catastrophe"] and config.catastrophe == "stop":
            stop_for_good(config, parts, run, at, row, progress)
            return
        at.train_pgd = row["train_pgd"]
    row["best"] = score > at.best or parts.held_out is None
    if rank() == 0:
        info = CheckpointInfo(parts.model_options, config.data, parts.test.classes, config.norm, config.eps, at.epoch)
        run.add_metrics(row)
        if row["best"]:
            run.save_weights(run.best, parts.model, info)
        run.save_weights(run.last, parts.model, info)
    parts.method.finish_epoch(parts.model, row)
    at.epoch, at.batch, at.sums, at.best = at.epoch + 1, 0, no_sums(parts.device), max(at.best, score)
    save_state(config, parts, run, at)
    progress.finish(row)


def stop_for_good(
    config: TrainConfig, parts: Parts, run: RunFolder, at: Position, row: dict[str, Any], progress: Progress
) -> None:
    """Ends the run before the weights of this epoch are written: best and last stay those of before."""
    if rank() == 0:
        run.add_metrics(row | {"best": False})
    at.epoch, at.batch, at.sums, at.stopped = at.epoch + 1, 0, no_sums(parts.device), True
    save_state(config, parts, run, at)
    progress.finish(row | {"best": False})
    progress.say(f"catastrophic overfitting: stopped, and {run.last} holds the weights from before this epoch")


def left(run: RunFolder) -> str:
    if not run.last.exists():
        return "No epoch was finished yet"
    return f"The last good weights are in {run.last}, the best ones in {run.best}"


def how_to_resume(run: RunFolder) -> str:
    return f"go on with: pyengm train --out {run.path} --resume"
