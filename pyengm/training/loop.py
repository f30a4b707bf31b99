"""The training loop."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.checks import Checks
from pyengm.data import Batch
from pyengm.distributed import any_of, average_buffers, average_gradients, by_first, rank, summed, world
from pyengm.errors import NonFiniteError, StorageError
from pyengm.evaluation import attack_named, judge
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.training.catastrophe import is_catastrophe, training_accuracy
from pyengm.training.config import TrainConfig
from pyengm.training.groups import closure_step, groups, takes_closures
from pyengm.training.loggers import JsonLines, Logger, Loggers, Terminal, build_logger
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import Parts
from pyengm.training.state import Position, restore, save_state
from pyengm.training.stop import Interrupted, StopRequest
from pyengm.training.stopwatch import Stopwatch
from pyengm.training.sums import means, measure, no_sums, read_sums

LOOK_EVERY = 20  # batches of a GPU


def fit(config: TrainConfig, parts: Parts, run: RunFolder, loggers: Sequence[Logger] = ()) -> None:
    """Trains to the end, from the run's saved state if it has one.

    loggers: are told too, and closed at the end.
    Raises Interrupted after Ctrl-C or SIGTERM, with the state saved; NonFiniteError when a loss is nan or infinite and
    StorageError when the disk is full: the files of the epochs before stay as they are.
    Where several processes run, all call this; each has its part of every batch, and process 0 writes and logs.
    A step never waits for a GPU. What it checks is read every `LOOK_EVERY` batches and before anything is written.
    """
    every = look_every(parts.device)
    watch = Stopwatch(config.epochs, len(parts.batches), parts.device)
    log = Loggers(all_loggers(config, run, loggers) if rank() == 0 else ())
    with telling_what_is_left(run), StopRequest() as stop, log:
        at = restore(config, parts, run)
        log.start(config.plain(), len(parts.batches), at.epoch, at.batch)
        for epoch in range(at.epoch, config.epochs):
            if at.stopped:
                break
            parts.network.train()
            if at.batch == 0:
                for store in parts.method.stores().values():
                    store.follow(parts.batches.kept(epoch))
                parts.method.start_epoch(parts.network, epoch)
                parts.optimizer.start_epoch(epoch)
                if epoch == parts.method.restarts_at:
                    parts.averaging.restart()
            checks, seen = Checks(), read_sums(at.sums)
            watch.start(at.batch)
            for group in groups(parts.batches.epoch(epoch, start=at.batch), parts.optimizer):
                with checks.at(f"epoch {epoch + 1}, batch {at.batch + 1}"):
                    at.sums += step(config, parts, group, epoch)
                at.batch += len(group)
                watch.count(sum(batch.size for batch in group))
                looking = at.batch % every < len(group) or at.batch == len(parts.batches)
                asked = any_of(stop.asked) if looking else stop.asked and world() == 1
                if asked or looking:
                    checks.read()
                    seen = report_step(parts, at, seen, log, watch)
                if asked:
                    save_state(config, parts, run, at)
                    raise Interrupted(f"stopped after batch {at.batch} of epoch {epoch + 1}; {how_to_resume(run)}")
            finish_epoch(config, parts, run, at, log, watch)
        if any_of(stop.asked):  # while the last epoch was measured and written
            raise Interrupted(after_training(run))


def all_loggers(config: TrainConfig, run: RunFolder, given: Iterable[Logger]) -> Iterator[Logger]:
    """The files of the run folder first, then the terminal, those given, and those that the options name."""
    yield JsonLines(run.metrics, run.timing)
    yield Terminal()
    yield from given
    for name in config.loggers:
        yield build_logger(name, run.path, config.plain())


def look_every(device: torch.device) -> int:
    """Batches from one look at what a device has computed to the next; the host waits for each."""
    return 1 if device.type == "cpu" else LOOK_EVERY


def step(config: TrainConfig, parts: Parts, group: list[Batch], epoch: int) -> Tensor:
    """One batch, or the several of an optimiser with an inner loop: attack, per-example losses, weights, update.

    Returns the sums over its pictures, see `SUMS`.
    """
    keys = [Key(config.seed, epoch, batch.index) for batch in group]
    average = partial(average_gradients, parts.model)
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
    parts.averaging.after_step()
    return measure(used, torch.cat([batch.y for batch in group]))


def report_step(parts: Parts, at: Position, seen: dict[str, float], log: Loggers, watch: Stopwatch) -> dict[str, float]:
    """Logs the batches since the sums, of this process, were `seen`; returns the sums now."""
    sums = read_sums(at.sums)
    row = {"epoch": at.epoch, "batch": at.batch, "lr": parts.schedule.get_last_lr()[0]}
    row |= means({name: total - seen[name] for name, total in sums.items()})
    log.step(row, watch.step(at.epoch, at.batch))
    return sums


def finish_epoch(
    config: TrainConfig, parts: Parts, run: RunFolder, at: Position, log: Loggers, watch: Stopwatch
) -> None:
    """Measures the held-out pictures, then writes metrics, checkpoints and, last of all, the state."""
    row = {"epoch": at.epoch, "lr": parts.schedule.get_last_lr()[0], **means(read_sums(summed(at.sums)))}
    parts.averaging.after_epoch(at.epoch)
    model, score = parts.averaging.evaluated, math.inf
    if parts.held_out is not None:
        row |= held_out_figures(config, parts, model)
        score = row["natural"] if config.method == "natural" else row["robust"]
    if at.epoch == parts.method.restarts_at:
        at.train_pgd = None  # the weights are young again, and no match for those of before
    if config.method != "natural":
        row["train_pgd"] = training_accuracy(config, parts, at.epoch)
        row["catastrophe"] = is_catastrophe(at.train_pgd, row["train_pgd"])
        if row["catastrophe"] and config.catastrophe == "stop":
            by_first(lambda: log.epoch(row | {"best": False}, watch.epoch(at.epoch)))
            stop_for_good(config, parts, run, at, log)
            return
        at.train_pgd = row["train_pgd"]
    row["best"] = score > at.best or parts.held_out is None
    by_first(lambda: log.epoch(row, watch.epoch(at.epoch)))
    info = CheckpointInfo(parts.model_options, config.data, parts.test.classes, config.norm, config.eps, at.epoch)
    for path in [run.best, run.last] if row["best"] else [run.last]:
        by_first(partial(run.save_weights, path, model, info))
    told = row
    if parts.method.reads_scores and parts.held_out is not None and model is not parts.model:
        told = row | held_out_figures(config, parts, parts.model)  # the method is about the weights that are trained
    if parts.method.finish_epoch(parts.model, told):
        parts.averaging.restart()
    at.epoch, at.batch, at.sums, at.best = at.epoch + 1, 0, no_sums(parts.device), max(at.best, score)
    at.stale = 0 if row["best"] else at.stale + 1
    at.stopped = config.patience is not None and at.stale >= config.patience
    save_state(config, parts, run, at)
    if at.stopped and at.epoch < config.epochs:
        log.say(f"stopped early: no epoch since epoch {at.epoch - at.stale} was better")


def held_out_figures(config: TrainConfig, parts: Parts, model: nn.Module) -> dict[str, float]:
    """Accuracy, loss and calibration error of a model on the held-out pictures, natural and under PGD-20."""
    attack = attack_named("pgd20", config.threats()[0])
    measured = {"seed": config.seed, "device": parts.device}
    natural = judge(model, parts.held_out, None, **measured).summary("natural")
    return natural | judge(model, parts.held_out, attack, **measured).summary("robust")


def stop_for_good(config: TrainConfig, parts: Parts, run: RunFolder, at: Position, log: Loggers) -> None:
    """Ends the run before the weights of this epoch are written: best and last stay those of before."""
    at.epoch, at.batch, at.sums, at.stopped = at.epoch + 1, 0, no_sums(parts.device), True
    save_state(config, parts, run, at)
    log.say(f"catastrophic overfitting: stopped, and {run.last} holds the weights from before this epoch")


@contextmanager
def telling_what_is_left(run: RunFolder) -> Iterator[None]:
    """Errors that end a run say where its last good weights are."""
    try:
        yield
    except (NonFiniteError, StorageError) as error:
        raise type(error)(f"{error}. {left(run)}") from error


def left(run: RunFolder) -> str:
    if not run.last.exists():
        return "No epoch was finished yet"
    return f"The last good weights are in {run.last}, the best ones in {run.best}"


def after_training(run: RunFolder) -> str:
    return f"the training is complete; for its evaluation, {how_to_resume(run)}"


def how_to_resume(run: RunFolder) -> str:
    return f"go on with: pyengm train --out {run.path} --resume"
