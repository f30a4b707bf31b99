"""A whole run: training, evaluation of the best and last weights, and a folder with all results."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, Interrupted, StorageError
from pyengm.evaluation import check_attacks, evaluate_with_progress, evaluation_tables, final_attacks, plot_curves
from pyengm.training.builders import TrainComponents, build_components
from pyengm.training.config import TrainConfig
from pyengm.training.disk_space import check_disk_space, run_size
from pyengm.training.loop import evaluation_hint, fit, resume_hint
from pyengm.training.run_folder import RunFolder, next_free, out_of
from pyengm.training.signals import sigterm_as_ctrl_c
from pyengm.utils.distributed import on_rank0, world_size
from pyengm.utils.memory import memory_errors
from pyengm.utils.terminal import log, log_warnings, quieted


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, evaluates the best and the last weights, and writes results.json, results.txt and curves.png.

    All processes of a run call this.

    Args:
        config: Options; those that are not given follow the recipe. With `resume` the run in `out` is resumed; a
            complete one stays as it is.

    Returns:
        The content of results.json, see `evaluate_checkpoints`.

    Raises:
        ConfigError: For options that do not fit together, the data or the machine, before anything is written.
        DataError: For data that cannot be read, before anything is written.
        StorageError: Where the disk is full or cannot be written to.
        Interrupted: After Ctrl-C or SIGTERM.
        NonFiniteError: Where a loss is nan or infinite.
    """
    config = config.resolve()
    check_single_run(config)
    with quieted(config.run.quiet), memory_errors("give a smaller --batch-size, --width or --image-size"):
        return run_to_results(config)


def run_to_results(config: TrainConfig) -> dict[str, Any]:
    """The run of resolved options; see `train`."""
    if config.machine.cpu_threads is not None:
        torch.set_num_threads(config.machine.cpu_threads)
    with log_warnings():
        components = build_components(config)
        attacks = final_attacks(config.evaluation.attacks)
        check_attacks(attacks, components.test, config.threats())  # so that an error comes before the training
    if not config.run.resume:
        on_rank0(lambda: check_disk_space(run_size(config, components), config.run.out or next_free(config)))
    run = begin(config)
    with resume_hint_on_error(run), run.locked():
        log(f"run folder: {run.path}")
        if on_rank0(run.results.exists):
            log(f"the run is complete; its results are in {run.results}")
            log(f"further attacks: pyengm evaluate {run.path} --attacks ...")
            return run.read_results()
        on_rank0(lambda: run.add_environment(images_of(components)))
        with log_warnings():
            fit(config, components, run)
        try:
            with sigterm_as_ctrl_c():
                title = f"{components.test.name}, {config.method.name}, {config.optimizer.name}"
                on_rank0(lambda: plot_curves(run.read_metrics(), run.curves, title))
                results = evaluate_with_progress(
                    {"best": run.best, "last": run.last},
                    components.test,
                    config.threats(),
                    attacks,
                    autoattack_examples=config.evaluation.autoattack_examples,
                    state=run.autoattack,
                    trust_config=True,  # this process has built the model itself
                    seed=config.run.seed,
                    device=components.device,
                )
        except KeyboardInterrupt:
            raise Interrupted(evaluation_hint(run)) from None
        if components.held_out is None:  # best and last are the same epoch, which says nothing of overfitting
            results.pop("robust_overfitting", None)
        table = evaluation_tables(results, str(run.path))
        on_rank0(lambda: run.save_results(results, as_text(table)))
        log(table, always=True)
        log(f"weights, results.json and curves.png are in {run.path}")
    return results


def images_of(components: TrainComponents) -> dict[str, ImageDataset]:
    """The images of a run by their use: train, test and, where images select the best weights, held_out."""
    found = {"train": components.batches.data, "held_out": components.held_out, "test": components.test}
    return {use: data for use, data in found.items() if data is not None}


def check_single_run(config: TrainConfig) -> None:
    """Raises ConfigError for options of the command line that `train` would not follow."""
    if config.run.seeds:
        raise ConfigError(f"train makes one run, of one seed, and seeds is {config.run.seeds}: use train_seeds")
    if config.run.dry_run:
        raise ConfigError("dry_run is for the command line; in Python print pyengm.training.plan(config)")
    if (config.machine.nproc or 1) > 1 and world_size() == 1:
        raise ConfigError(
            f"nproc is {config.machine.nproc} in a single process: the command line starts the others; start a script "
            "with torchrun"
        )


def begin(config: TrainConfig) -> RunFolder:
    """The folder of a new run, which process 0 makes, or with `resume` that of the earlier run."""
    if config.run.resume:
        return RunFolder.open(out_of(config))
    return RunFolder(on_rank0(lambda: RunFolder.create(config).path))


@contextmanager
def resume_hint_on_error(run: RunFolder) -> Iterator[None]:
    """Adds what to do to errors of the disk."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{error}. Free disk space, or make the folder writable, and {resume_hint(run)}") from error


def as_text(tables: Any) -> str:
    """Tables of rich as plain text of 120 columns."""
    text = io.StringIO()
    Console(file=text, width=120, color_system=None, force_jupyter=False).print(tables)
    return text.getvalue()
