"""The training loop."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.data import Batch, ImageDataset
from pyengm.errors import Interrupted, NonFiniteError, StorageError
from pyengm.evaluation import create_attack, predict
from pyengm.methods import LogsInstances
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents, plain_method
from pyengm.training.catastrophic_overfitting import is_catastrophic, training_accuracy
from pyengm.training.config import TrainConfig
from pyengm.training.instance_files import save_instances
from pyengm.training.loggers import Guarded, JsonLines, Logger, Loggers, Terminal, build_logger
from pyengm.training.metric_sums import means, measure, read_sums
from pyengm.training.probe import measure_probe
from pyengm.training.run_folder import RunFolder
from pyengm.training.signals import StopRequest
from pyengm.training.snapshots import snapshot_epochs
from pyengm.training.timing import EpochTimer
from pyengm.training.train_state import TrainState, restore, save_state
from pyengm.utils.checks import Checks
from pyengm.utils.distributed import (
    all_reduce_any,
    all_reduce_sum,
    average_buffers,
    on_rank0,
    rank,
    world_size,
)
from pyengm.utils.io import make_dirs, write_arrays
from pyengm.utils.terminal import is_quiet

SYNC_INTERVAL = 20  # batches on a GPU


def fit(config: TrainConfig, components: TrainComponents, run: RunFolder, extra_loggers: Sequence[Logger] = ()) -> None:
    """Trains to the end, from the saved state of the run if it has one.

    All processes of a run call this. Each has its part of every batch; process 0 writes and logs. No step makes the
    host wait for a GPU: its checks are read every `SYNC_INTERVAL` batches, and before anything is written.

    Args:
        config: Resolved options.
        components: What `build_components` built from them.
        run: The run folder.
        extra_loggers: Loggers beside those of the options; they are closed at the end.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
        NonFiniteError: Where a loss is nan or infinite. The files of the epochs before stay as they are.
        StorageError: Where the disk is full. The files of the epochs before stay as they are.
    """
    timer = EpochTimer(config.schedule.epochs, len(components.batches), components.device)
    loggers = Loggers(build_loggers(config, run, extra_loggers) if rank() == 0 else ())
    with checkpoint_hint_on_error(run), StopRequest() as stop, loggers:
        state = restore(config, components, run)
        loggers.start(config.plain(), len(components.batches), state.epoch, state.batch)
        for epoch in range(state.epoch, config.schedule.epochs):
            if state.stopped:
                break
            components.network.train()
            if state.batch == 0:
                start_epoch(components, epoch)
            train_epoch(config, components, run, state, loggers, timer, stop)
            finish_epoch(config, components, run, state, loggers, timer)
        if all_reduce_any(stop.requested):  # while the last epoch was measured and written
            raise Interrupted(evaluation_hint(run))


def build_loggers(config: TrainConfig, run: RunFolder, extra: Iterable[Logger]) -> Iterator[Logger]:
    """The files of the run folder, the terminal, the extra loggers, then those that the options name."""
    yield JsonLines(run.metrics, run.timing)
    if not is_quiet():
        yield Terminal()
    for logger in extra:
        yield Guarded(type(logger).__name__, logger)
    for name in config.run.loggers:
        yield Guarded(name, build_logger(name, run.path, config.plain()))


def sync_interval(device: torch.device) -> int:
    """The number of batches between two reads of results from the device; the host waits for each."""
    return 1 if device.type == "cpu" else SYNC_INTERVAL


def start_epoch(components: TrainComponents, epoch: int) -> None:
    """Prepares the method, the optimiser and the average of weights for the batches of an epoch."""
    for buffer in components.method.buffers().values():
        buffer.exchange(components.batches.local_index(epoch))
    components.method.start_epoch(components.network, epoch)
    components.optimizer.start_epoch(epoch)
    if epoch == components.method.restart_epoch:
        components.averaging.restart()


def train_epoch(
    config: TrainConfig,
    components: TrainComponents,
    run: RunFolder,
    state: TrainState,
    loggers: Loggers,
    timer: EpochTimer,
    stop: StopRequest,
) -> None:
    """Trains on the remaining batches of the epoch. Raises Interrupted, with the state saved, on a stop request."""
    interval, epoch = sync_interval(components.device), state.epoch
    checks, logged = Checks(), read_sums(state.sums)
    timer.start(state.batch)
    batches = components.batches.epoch(epoch, start=state.batch)
    for group in grouped(batches, components.step.batches_per_update):
        with checks.at(f"epoch {epoch + 1}, batch {state.batch + 1}"):
            state.sums += update(config, components, group, epoch)
        state.batch += len(group)
        timer.count(sum(batch.size for batch in group))
        is_sync = state.batch % interval < len(group) or state.batch == len(components.batches)
        stopping = all_reduce_any(stop.requested) if is_sync else stop.requested and world_size() == 1
        if is_sync or stopping:
            checks.read()
            logged = report_step(components, state, logged, loggers, timer)
        if stopping:
            save_state(config, components, run, state)
            raise Interrupted(f"stopped after batch {state.batch} of epoch {epoch + 1}; {resume_hint(run)}")


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yields the batches in groups of `size`; the last group may be shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def update(config: TrainConfig, components: TrainComponents, batches: list[Batch], epoch: int) -> Tensor:
    """Takes one training step and those of the schedule and of the average of weights.

    Args:
        config: Resolved options.
        components: The components of the run.
        batches: The batches of the step.
        epoch: The epoch, counted from 0.

    Returns:
        The sums over the images of the batches, (15,) float64, see `SUMS`.
    """
    stats = components.step(batches, [Key(config.run.seed, epoch, batch.index) for batch in batches])
    average_buffers(components.model)
    for _ in batches:
        components.schedule.step()
    components.averaging.after_step()
    labels = torch.cat([batch.y for batch in batches])
    labels = labels.argmax(dim=1) if labels.is_floating_point() else labels  # CutMix: the class of the larger part
    return measure(stats, labels, components.optimizer.take_grad_squares())


def report_step(
    components: TrainComponents, state: TrainState, logged: dict[str, float], loggers: Loggers, timer: EpochTimer
) -> dict[str, float]:
    """Logs the batches since the sums of this process were `logged`; returns the present sums."""
    sums = read_sums(state.sums)
    row = {"epoch": state.epoch, "batch": state.batch, "lr": components.schedule.get_last_lr()[0]}
    row |= means({name: total - logged[name] for name, total in sums.items()})
    loggers.step(row, timer.step(state.epoch, state.batch))
    return sums


def finish_epoch(
    config: TrainConfig,
    components: TrainComponents,
    run: RunFolder,
    state: TrainState,
    loggers: Loggers,
    timer: EpochTimer,
) -> None:
    """Evaluates on the held-out images, then writes metrics, weights and, last of all, the state."""
    row: dict[str, Any] = {"epoch": state.epoch, "lr": components.schedule.get_last_lr()[0]}
    row |= means(read_sums(all_reduce_sum(state.sums)))
    components.averaging.after_epoch(state.epoch)
    model, score = components.averaging.evaluated, math.inf
    if components.held_out is not None:
        row |= held_out_metrics(config, components, components.held_out, model, loggers)
        score = row["natural"] if config.method.name == "natural" else row["robust"]
    if config.method.name != "natural":
        row |= catastrophic_overfitting_metrics(config, components, state)
        if row["catastrophic_overfitting"] and config.method.on_catastrophic_overfitting == "stop":
            on_rank0(
                lambda: loggers.epoch(
                    row | {"best": None if components.held_out is None else False}, timer.epoch(state.epoch)
                )
            )
            finish_early(config, components, run, state, loggers)
            return
        state.train_pgd = row["train_pgd"]
    row |= probe_metrics(config, components, run, state.epoch)
    is_best = score > state.best or components.held_out is None  # where no images select, the last weights are the best
    row["best"] = None if components.held_out is None else is_best
    on_rank0(lambda: loggers.epoch(row, timer.epoch(state.epoch)))
    save_weights(config, components, run, model, state.epoch, is_best=is_best)
    method = plain_method(components.method)
    if config.record.instance_log and isinstance(method, LogsInstances):
        save_instances(run.instances / f"epoch-{state.epoch + 1:04d}.npz", method)
    finish_method_epoch(config, components, model, row, loggers)
    state.advance_epoch()
    state.best = max(state.best, score)
    state.epochs_without_improvement = 0 if is_best else state.epochs_without_improvement + 1
    state.stopped = (
        config.evaluation.patience is not None and state.epochs_without_improvement >= config.evaluation.patience
    )
    save_state(config, components, run, state)
    if state.stopped and state.epoch < config.schedule.epochs:
        loggers.log(f"stopped early: no epoch since epoch {state.epoch - state.epochs_without_improvement} was better")


def catastrophic_overfitting_metrics(
    config: TrainConfig, components: TrainComponents, state: TrainState
) -> dict[str, Any]:
    """The accuracy under PGD on training images, and whether it collapsed since the epoch before."""
    before = None if state.epoch == components.method.restart_epoch else state.train_pgd  # the weights were reset
    accuracy = training_accuracy(config, components, state.epoch)
    return {"train_pgd": accuracy, "catastrophic_overfitting": is_catastrophic(before, accuracy)}


def probe_metrics(config: TrainConfig, components: TrainComponents, run: RunFolder, epoch: int) -> dict[str, Any]:
    """The gradients of the probe's images under the trained weights, which are written; empty without a probe."""
    if components.probe is None:
        return {}
    found = measure_probe(config, components, components.probe)
    on_rank0(lambda: write_arrays(run.probe / f"epoch-{epoch + 1:04d}.npz", found.arrays()))
    return found.metrics()


def save_weights(
    config: TrainConfig, components: TrainComponents, run: RunFolder, model: nn.Module, epoch: int, *, is_best: bool
) -> None:
    """Writes the weights of the epoch as the last ones and, where they are, as the best ones and as a snapshot."""
    test = components.test
    info = CheckpointInfo(
        components.model_options, config.data.name, test.classes, config.attack.threat, config.attack.eps, epoch
    )
    paths = [run.best, run.last] if is_best else [run.last]
    if epoch + 1 in snapshot_epochs(config.record.snapshots, config.schedule.epochs):
        make_dirs(run.snapshots)
        paths.append(run.snapshots / f"epoch-{epoch + 1:04d}.safetensors")
    for path in paths:
        on_rank0(partial(run.save_weights, path, model, info))


def finish_method_epoch(
    config: TrainConfig, components: TrainComponents, evaluated: nn.Module, row: dict[str, Any], loggers: Loggers
) -> None:
    """Passes the metrics of the epoch to the method; those of the trained weights where it uses held-out metrics."""
    model, method, held_out = components.model, components.method, components.held_out
    if method.info.uses_val_metrics and held_out is not None and evaluated is not model:
        row = row | held_out_metrics(config, components, held_out, model, loggers)
    if method.finish_epoch(model, row):
        components.averaging.restart()


def held_out_metrics(
    config: TrainConfig, components: TrainComponents, held_out: ImageDataset, model: nn.Module, loggers: Loggers
) -> dict[str, float]:
    """Accuracy, loss and calibration error of a model on the held-out images, natural and under PGD-20."""
    attack = create_attack("pgd20", config.threats()[0])
    options = {"seed": config.run.seed, "device": components.device}
    natural = predict(model, held_out, None, **options).summary("natural")
    return natural | predict(model, held_out, attack, **options, on_batch=loggers.held_out).summary("robust")


def finish_early(
    config: TrainConfig, components: TrainComponents, run: RunFolder, state: TrainState, loggers: Loggers
) -> None:
    """Ends the run before the weights of this epoch are written: best and last stay those of the epoch before."""
    state.advance_epoch()
    state.stopped = True
    save_state(config, components, run, state)
    loggers.log(f"catastrophic overfitting: stopped, and {run.last} holds the weights from before this epoch")


@contextmanager
def checkpoint_hint_on_error(run: RunFolder) -> Iterator[None]:
    """Adds the files of the last good weights to errors that end a run."""
    try:
        yield
    except (NonFiniteError, StorageError) as error:
        raise type(error)(f"{error}. {weights_hint(run)}") from error


def weights_hint(run: RunFolder) -> str:
    """Names the files of the last good weights."""
    if not run.last.exists():
        return "No epoch was finished yet"
    return f"The last good weights are in {run.last}, the best ones in {run.best}"


def evaluation_hint(run: RunFolder) -> str:
    """Says how to evaluate a run whose training is complete."""
    return f"the training is complete; to evaluate it, {resume_hint(run)}"


def resume_hint(run: RunFolder) -> str:
    """Gives the command that resumes a run."""
    trust = " --trust-config" if TrainConfig.load(run.config).code() else ""
    return f"resume with: pyengm train --out {run.path} --resume{trust}"
