"""The training loop."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pyengm.data import Batch
from pyengm.errors import NonFiniteError, StorageError
from pyengm.evaluation import attack_named, predict
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents
from pyengm.training.catastrophic_overfitting import is_catastrophic, training_accuracy
from pyengm.training.config import TrainConfig
from pyengm.training.loggers import JsonLines, Logger, Loggers, Terminal, build_logger
from pyengm.training.metric_sums import means, measure, read_sums, zero_sums
from pyengm.training.run_folder import RunFolder
from pyengm.training.signals import Interrupted, StopRequest
from pyengm.training.steps.closure_step import closure_step, groups, takes_closures
from pyengm.training.timing import EpochTimer
from pyengm.training.train_state import TrainState, restore, save_state
from pyengm.utils.checks import Checks
from pyengm.utils.distributed import (
    all_reduce_any,
    all_reduce_sum,
    average_buffers,
    average_gradients,
    on_rank0,
    rank,
    world,
)

SYNC_INTERVAL = 20  # batches of a GPU


def fit(config: TrainConfig, components: TrainComponents, run: RunFolder, loggers: Sequence[Logger] = ()) -> None:
    """Trains to the end, from the run's saved state if it has one.

    loggers: are told too, and closed at the end.
    Raises Interrupted after Ctrl-C or SIGTERM, with the state saved; NonFiniteError when a loss is nan or infinite and
    StorageError when the disk is full: the files of the epochs before stay as they are.
    Where several processes run, all call this; each has its part of every batch, and process 0 writes and logs.
    A step never waits for a GPU. What it checks is read every `SYNC_INTERVAL` batches and before anything is written.
    """
    every = sync_interval(components.device)
    watch = EpochTimer(config.schedule.epochs, len(components.batches), components.device)
    log = Loggers(all_loggers(config, run, loggers) if rank() == 0 else ())
    with checkpoint_hint_on_error(run), StopRequest() as stop, log:
        at = restore(config, components, run)
        log.start(config.plain(), len(components.batches), at.epoch, at.batch)
        for epoch in range(at.epoch, config.schedule.epochs):
            if at.stopped:
                break
            components.network.train()
            if at.batch == 0:
                for store in components.method.stores().values():
                    store.follow(components.batches.kept(epoch))
                components.method.start_epoch(components.network, epoch)
                components.optimizer.start_epoch(epoch)
                if epoch == components.method.restart_epoch:
                    components.averaging.restart()
            checks, seen = Checks(), read_sums(at.sums)
            watch.start(at.batch)
            for group in groups(components.batches.epoch(epoch, start=at.batch), components.optimizer):
                with checks.at(f"epoch {epoch + 1}, batch {at.batch + 1}"):
                    at.sums += step(config, components, group, epoch)
                at.batch += len(group)
                watch.count(sum(batch.size for batch in group))
                looking = at.batch % every < len(group) or at.batch == len(components.batches)
                asked = all_reduce_any(stop.asked) if looking else stop.asked and world() == 1
                if asked or looking:
                    checks.read()
                    seen = report_step(components, at, seen, log, watch)
                if asked:
                    save_state(config, components, run, at)
                    raise Interrupted(f"stopped after batch {at.batch} of epoch {epoch + 1}; {how_to_resume(run)}")
            finish_epoch(config, components, run, at, log, watch)
        if all_reduce_any(stop.asked):  # while the last epoch was measured and written
            raise Interrupted(after_training(run))


def all_loggers(config: TrainConfig, run: RunFolder, given: Iterable[Logger]) -> Iterator[Logger]:
    """The files of the run folder first, then the terminal, those given, and those that the options name."""
    yield JsonLines(run.metrics, run.timing)
    yield Terminal()
    yield from given
    for name in config.run.loggers:
        yield build_logger(name, run.path, config.plain())


def sync_interval(device: torch.device) -> int:
    """Loader from one look at what a device has computed to the next; the host waits for each."""
    return 1 if device.type == "cpu" else SYNC_INTERVAL


def step(config: TrainConfig, components: TrainComponents, group: list[Batch], epoch: int) -> Tensor:
    """One batch, or the several of an optimiser with an inner loop: attack, per-example losses, weights, update.

    Returns the sums over its images, see `SUMS`.
    """
    keys = [Key(config.run.seed, epoch, batch.index) for batch in group]
    average = partial(average_gradients, components.model)
    if takes_closures(components.optimizer):
        used = closure_step(components.method, components.network, components.optimizer, group, keys, average)
    else:
        (batch,), (key,) = group, keys
        images = batch.x, batch.y, key, batch.transform
        options = {"scaler": components.scaler, "average": partial(average, len(batch.y))}
        used = components.train_step(components.method, components.network, components.optimizer, *images, **options)
    average_buffers(components.model)
    for _ in group:
        components.schedule.step()
    components.averaging.after_step()
    return measure(used, torch.cat([batch.y for batch in group]))


def report_step(
    components: TrainComponents, at: TrainState, seen: dict[str, float], log: Loggers, watch: EpochTimer
) -> dict[str, float]:
    """Logs the batches since the sums, of this process, were `seen`; returns the sums now."""
    sums = read_sums(at.sums)
    row = {"epoch": at.epoch, "batch": at.batch, "lr": components.schedule.get_last_lr()[0]}
    row |= means({name: total - seen[name] for name, total in sums.items()})
    log.step(row, watch.step(at.epoch, at.batch))
    return sums


def finish_epoch(
    config: TrainConfig, components: TrainComponents, run: RunFolder, at: TrainState, log: Loggers, watch: EpochTimer
) -> None:
    """Measures the held-out images, then writes metrics, checkpoints and, last of all, the state."""
    row = {"epoch": at.epoch, "lr": components.schedule.get_last_lr()[0], **means(read_sums(all_reduce_sum(at.sums)))}
    components.averaging.after_epoch(at.epoch)
    model, score = components.averaging.evaluated, math.inf
    if components.held_out is not None:
        row |= held_out_figures(config, components, model)
        score = row["natural"] if config.method.name == "natural" else row["robust"]
    if at.epoch == components.method.restart_epoch:
        at.train_pgd = None  # the weights are young again, and no match for those of before
    if config.method.name != "natural":
        row["train_pgd"] = training_accuracy(config, components, at.epoch)
        row["catastrophic_overfitting"] = is_catastrophic(at.train_pgd, row["train_pgd"])
        if row["catastrophic_overfitting"] and config.method.on_catastrophic_overfitting == "stop":
            on_rank0(lambda: log.epoch(row | {"best": False}, watch.epoch(at.epoch)))
            finish_early(config, components, run, at, log)
            return
        at.train_pgd = row["train_pgd"]
    row["best"] = score > at.best or components.held_out is None
    on_rank0(lambda: log.epoch(row, watch.epoch(at.epoch)))
    info = CheckpointInfo(
        components.model_options,
        config.data.name,
        components.test.classes,
        config.attack.threat,
        config.attack.eps,
        at.epoch,
    )
    for path in [run.best, run.last] if row["best"] else [run.last]:
        on_rank0(partial(run.save_weights, path, model, info))
    told = row
    if components.method.uses_val_metrics and components.held_out is not None and model is not components.model:
        told = row | held_out_figures(
            config, components, components.model
        )  # the method is about the weights that are trained
    if components.method.finish_epoch(components.model, told):
        components.averaging.restart()
    at.epoch, at.batch, at.sums, at.best = at.epoch + 1, 0, zero_sums(components.device), max(at.best, score)
    at.epochs_without_improvement = 0 if row["best"] else at.epochs_without_improvement + 1
    at.stopped = config.evaluation.patience is not None and at.epochs_without_improvement >= config.evaluation.patience
    save_state(config, components, run, at)
    if at.stopped and at.epoch < config.schedule.epochs:
        log.log(f"stopped early: no epoch since epoch {at.epoch - at.epochs_without_improvement} was better")


def held_out_figures(config: TrainConfig, components: TrainComponents, model: nn.Module) -> dict[str, float]:
    """Accuracy, loss and calibration error of a model on the held-out images, natural and under PGD-20."""
    attack = attack_named("pgd20", config.threats()[0])
    measured = {"seed": config.run.seed, "device": components.device}
    natural = predict(model, components.held_out, None, **measured).summary("natural")
    return natural | predict(model, components.held_out, attack, **measured).summary("robust")


def finish_early(
    config: TrainConfig, components: TrainComponents, run: RunFolder, at: TrainState, log: Loggers
) -> None:
    """Ends the run before the weights of this epoch are written: best and last stay those of before."""
    at.epoch, at.batch, at.sums, at.stopped = at.epoch + 1, 0, zero_sums(components.device), True
    save_state(config, components, run, at)
    log.log(f"catastrophic overfitting: stopped, and {run.last} holds the weights from before this epoch")


@contextmanager
def checkpoint_hint_on_error(run: RunFolder) -> Iterator[None]:
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
