"""The training loop."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from pyengm.errors import NonFiniteError
from pyengm.evaluation import accuracy, attack_named
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.training.config import TrainConfig
from pyengm.training.progress import Progress
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import Parts
from pyengm.training.stop import Interrupted, StopRequest

SUMS = ("pictures", "loss", "robust", "clipped")  # what is added up over the batches of an epoch


@dataclass
class Position:
    """Where a run stands: the next batch, the sums over the batches of its epoch so far, the best accuracy yet."""

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    best: float = -math.inf


def fit(config: TrainConfig, parts: Parts, run: RunFolder) -> None:
    """Trains to the end, from the run's saved state if it has one.

    Raises Interrupted after Ctrl-C, with the state saved, and NonFiniteError when a loss is nan or infinite; the
    files of the epochs before stay as they are.
    """
    at = restore(parts, run)
    with StopRequest() as stop, Progress(config.epochs, len(parts.batches)) as progress:
        for epoch in range(at.epoch, config.epochs):
            progress.start(epoch, at.batch)
            parts.model.train()
            for batch in parts.batches.epoch(epoch, start=at.batch):
                try:
                    add(at.sums, step(config, parts, batch, epoch))
                except NonFiniteError as error:
                    raise NonFiniteError(f"epoch {epoch + 1}, batch {at.batch + 1}: {error}. {left(run)}") from error
                at.batch += 1
                progress.step(at.sums)
                if stop.asked:
                    save_state(parts, run, at)
                    raise Interrupted(f"stopped after batch {at.batch} of epoch {epoch + 1}; {how_to_resume(run)}")
            finish_epoch(config, parts, run, at, progress)


def step(config: TrainConfig, parts: Parts, batch: Any, epoch: int) -> dict[str, float]:
    """One batch: attack, per-example losses, the optimiser's weights, the update."""
    outcome = parts.method(parts.model, batch.x, batch.y, Key(config.seed, epoch, batch.index))
    parts.optimizer.zero_grad()
    used = parts.optimizer.backward(outcome.losses, inputs=outcome.x_adv)
    parts.optimizer.step()
    parts.schedule.step()
    return {
        "pictures": len(batch.y),
        "loss": outcome.losses.detach().double().sum().item(),
        "robust": (outcome.logits.argmax(dim=1) == batch.y).sum().item(),
        "clipped": 0 if used is None else (used.weights < 1).sum().item(),
    }


def finish_epoch(config: TrainConfig, parts: Parts, run: RunFolder, at: Position, progress: Progress) -> None:
    """Measures the held-out pictures, then writes metrics, checkpoints and, last of all, the state."""
    pictures = at.sums["pictures"]
    row = {
        "epoch": at.epoch,
        "lr": parts.schedule.get_last_lr()[0],
        "loss": at.sums["loss"] / pictures,
        "train_robust": at.sums["robust"] / pictures,
        "clipped": at.sums["clipped"] / pictures,
    }
    score = math.inf
    if parts.held_out is not None:
        attack = attack_named("pgd20", config.threats()[0])
        measured = {"seed": config.seed, "device": parts.device}
        row["natural"] = accuracy(parts.model, parts.held_out, None, **measured)
        row["robust"] = accuracy(parts.model, parts.held_out, attack, **measured)
        score = row["natural"] if config.method == "natural" else row["robust"]
    row["best"] = score > at.best or parts.held_out is None
    info = CheckpointInfo(parts.model_options, config.data, parts.test.classes, config.norm, config.eps, at.epoch)
    run.add_metrics(row)
    if row["best"]:
        run.save_weights(run.best, parts.model, info)
    run.save_weights(run.last, parts.model, info)
    at.epoch, at.batch, at.sums, at.best = at.epoch + 1, 0, dict.fromkeys(SUMS, 0.0), max(at.best, score)
    save_state(parts, run, at)
    progress.finish(row)


def save_state(parts: Parts, run: RunFolder, at: Position) -> None:
    """Everything that the rest of the run depends on. Random numbers need none: they are counter-based, and torch's
    own generator is here for models that draw from it (dropout)."""
    cuda = torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None
    run.save_state(
        {
            "position": vars(at),
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "schedule": parts.schedule.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generator": cuda,
        }
    )


def restore(parts: Parts, run: RunFolder) -> Position:
    """Puts a saved state back and returns where it stands; the start where none was saved."""
    state = run.load_state(parts.model, parts.device)
    at = Position() if state is None else Position(**state["position"])
    run.cut_metrics(at.epoch)
    if state is not None:
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["generator"].cpu())
        if parts.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"].cpu(), parts.device)
    return at


def add(sums: dict[str, float], new: dict[str, float]) -> None:
    for name in sums:
        sums[name] += new[name]


def left(run: RunFolder) -> str:
    if not run.last.exists():
        return "No epoch was finished yet"
    return f"The last good weights are in {run.last}, the best ones in {run.best}"


def how_to_resume(run: RunFolder) -> str:
    return f"go on with: pyengm train --out {run.path} --resume"
