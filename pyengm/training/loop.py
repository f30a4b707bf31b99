"""The training loop."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengm.checks import Checks
from pyengm.data import Batch
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
from pyengm.training.stop import Interrupted, StopRequest
from pyengm.training.sums import measure, no_sums, read_sums, write_sums

LOOK_EVERY = 20  # batches of a GPU


@dataclass
class Position:
    """Where a run stands: the next batch, the sums over the batches of its epoch so far, the best accuracy yet."""

    sums: Tensor  # (4,), see `SUMS`
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    train_pgd: float | None = None  # accuracy under PGD on some training pictures, after the last epoch
    stale: int = 0  # epochs since the best one
    stopped: bool = False  # for good, by catastrophic overfitting or out of patience


def fit(config: TrainConfig, parts: Parts, run: RunFolder) -> None:
    """Trains to the end, from the run's saved state if it has one.

    Raises Interrupted after Ctrl-C, with the state saved, and NonFiniteError when a loss is nan or infinite; the
    files of the epochs before stay as they are.
    A step never waits for a GPU. What it checks is read every `LOOK_EVERY` batches and before anything is written.
    """
    at = restore(parts, run)
    every = look_every(parts.device)
    with StopRequest() as stop, Progress(config.epochs, len(parts.batches)) as progress:
        for epoch in range(at.epoch, config.epochs):
            if at.stopped:
                return
            progress.start(epoch, at.batch)
            parts.network.train()
            if at.batch == 0:
                parts.method.start_epoch(parts.network, epoch)
                if epoch == parts.method.restarts_at:
                    parts.averaging.restart()
            checks = Checks()
            for group in groups(parts.batches.epoch(epoch, start=at.batch), parts.optimizer):
                try:
                    with checks.at(f"epoch {epoch + 1}, batch {at.batch + 1}"):
                        at.sums += step(config, parts, group, epoch)
                    at.batch += len(group)
                    asked = stop.asked
                    if asked or at.batch % every < len(group) or at.batch == len(parts.batches):
                        checks.read()
                        progress.step(read_sums(at.sums), at.batch)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}. {left(run)}") from error
                if asked:
                    save_state(parts, run, at)
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
    if takes_closures(parts.optimizer):
        used = closure_step(parts.method, parts.network, parts.optimizer, group, keys)
    else:
        (batch,), (key,) = group, keys
        pictures = batch.x, batch.y, key, batch.transform
        used = parts.train_step(parts.method, parts.network, parts.optimizer, *pictures, scaler=parts.scaler)
    for _ in group:
        parts.schedule.step()
    parts.averaging.after_step()
    return measure(used, torch.cat([batch.y for batch in group]))


def finish_epoch(config: TrainConfig, parts: Parts, run: RunFolder, at: Position, progress: Progress) -> None:
    """Measures the held-out pictures, then writes metrics, checkpoints and, last of all, the state."""
    sums = read_sums(at.sums)
    pictures = sums["pictures"]
    row = {
        "epoch": at.epoch,
        "lr": parts.schedule.get_last_lr()[0],
        "loss": sums["loss"] / pictures,
        "train_robust": sums["robust"] / pictures,
        "clipped": sums["clipped"] / pictures,
    }
    parts.averaging.after_epoch(at.epoch)
    model, score = parts.averaging.evaluated, math.inf
    if parts.held_out is not None:
        attack = attack_named("pgd20", config.threats()[0])
        measured = {"seed": config.seed, "device": parts.device}
        row["natural"] = accuracy(model, parts.held_out, None, **measured)
        row["robust"] = accuracy(model, parts.held_out, attack, **measured)
        score = row["natural"] if config.method == "natural" else row["robust"]
    if at.epoch == parts.method.restarts_at:
        at.train_pgd = None  # the weights are young again, and no match for those of before
    if config.method != "natural":
        row["train_pgd"] = training_accuracy(config, parts, at.epoch)
        row["catastrophe"] = is_catastrophe(at.train_pgd, row["train_pgd"])
        if row["catastrophe"] and config.catastrophe == "stop":
            stop_for_good(parts, run, at, row, progress)
            return
        at.train_pgd = row["train_pgd"]
    row["best"] = score > at.best or parts.held_out is None
    info = CheckpointInfo(parts.model_options, config.data, parts.test.classes, config.norm, config.eps, at.epoch)
    run.add_metrics(row)
    if row["best"]:
        run.save_weights(run.best, model, info)
    run.save_weights(run.last, model, info)
    if parts.method.finish_epoch(parts.model, row):
        parts.averaging.restart()
    at.epoch, at.batch, at.sums, at.best = at.epoch + 1, 0, no_sums(parts.device), max(at.best, score)
    at.stale = 0 if row["best"] else at.stale + 1
    at.stopped = config.patience is not None and at.stale >= config.patience
    save_state(parts, run, at)
    progress.finish(row)
    if at.stopped and at.epoch < config.epochs:
        progress.say(f"stopped early: no epoch since epoch {at.epoch - at.stale} was better")


def stop_for_good(parts: Parts, run: RunFolder, at: Position, row: dict[str, Any], progress: Progress) -> None:
    """Ends the run before the weights of this epoch are written: best and last stay those of before."""
    run.add_metrics(row | {"best": False})
    at.epoch, at.batch, at.sums, at.stopped = at.epoch + 1, 0, no_sums(parts.device), True
    save_state(parts, run, at)
    progress.finish(row | {"best": False})
    progress.say(f"catastrophic overfitting: stopped, and {run.last} holds the weights from before this epoch")


def save_state(parts: Parts, run: RunFolder, at: Position) -> None:
    """Everything that the rest of the run depends on. Random numbers need none: they are counter-based, and torch's
    own generator is here for models that draw from it (dropout)."""
    cuda = torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None
    run.save_state(
        {
            "position": vars(at) | {"sums": read_sums(at.sums)},
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "schedule": parts.schedule.state_dict(),
            "method": parts.method.state_dict(),
            "averaging": parts.averaging.state_dict(),
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generator": cuda,
        }
    )


def restore(parts: Parts, run: RunFolder) -> Position:
    """Puts a saved state back and returns where it stands; the start where none was saved."""
    state = run.load_state(parts.model, parts.device)
    at = Position(no_sums(parts.device))
    if state is not None:
        at = Position(**state["position"] | {"sums": write_sums(state["position"]["sums"], parts.device)})
    run.cut_metrics(at.epoch)
    if state is not None:
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.schedule.load_state_dict(state["schedule"])
        parts.method.load_state_dict(state["method"])
        parts.averaging.load_state_dict(state["averaging"])
        if parts.scaler is not None:
            parts.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["generator"].cpu())
        if parts.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"].cpu(), parts.device)
    return at


def left(run: RunFolder) -> str:
    if not run.last.exists():
        return "No epoch was finished yet"
    return f"The last good weights are in {run.last}, the best ones in {run.best}"


def how_to_resume(run: RunFolder) -> str:
    return f"go on with: pyengm train --out {run.path} --resume"
