"""A whole run: training, the attack on what came out, and a folder that explains itself."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from pyengm.distributed import by_first
from pyengm.errors import ConfigError, StorageError
from pyengm.evaluation import attack_checkpoints, attack_names, check_attacks, plot_curves, results_table
from pyengm.terminal import say, spoken_warnings
from pyengm.training.config import TrainConfig
from pyengm.training.loop import after_training, fit, how_to_resume
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import set_up
from pyengm.training.stop import Interrupted, sigterm_as_ctrl_c


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, evaluates best and last, and leaves the table, results.json and curves.png in the run folder.

    config: resolved; with `resume` the run in config.out goes on, and a complete one is left as it is. Returns what
    results.json holds (`evaluate_checkpoints`). Where several processes run, all call this.
    Raises ConfigError or DataError before anything is written, StorageError where the disk is full or cannot be written
    to, Interrupted after Ctrl-C or SIGTERM, and what `fit` raises.
    """
    if config.seeds:
        raise ConfigError(f"train makes one run, of one seed, and seeds is {config.seeds}: use train_seeds")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with spoken_warnings():
        parts = set_up(config)
        attacks = attack_names(config.attacks)
        check_attacks(attacks, parts.test, config.threats())  # an error comes now, not after the training
    run = begin(config)
    with telling_how_to_go_on(run), run.locked():
        say(f"run folder: {run.path}")
        if by_first(run.results.exists):
            say(f"the run is complete; its results are in {run.results}")
            say(f"further attacks: pyengm evaluate {run.path} --attacks ...")
            return run.read_results()
        by_first(run.add_environment)
        with spoken_warnings():
            fit(config, parts, run)
        try:
            with sigterm_as_ctrl_c():
                title = f"{parts.test.name}, {config.method}, {config.optimizer}"
                by_first(lambda: plot_curves(run.read_metrics(), run.curves, title))
                results = attack_checkpoints(
                    {"best": run.best, "last": run.last},
                    parts.test,
                    config.threats(),
                    attacks,
                    autoattack_pictures=config.autoattack_pictures,
                    state=run.autoattack,
                    seed=config.seed,
                    device=parts.device,
                )
        except KeyboardInterrupt:
            raise Interrupted(after_training(run)) from None
        table = results_table(results, str(run.path))
        by_first(lambda: run.save_results(results, as_text(table)))
        say(table)
        say(f"weights, results.json and curves.png are in {run.path}")
    return results


def begin(config: TrainConfig) -> RunFolder:
    """The folder of a new run, which process 0 makes, or with `resume` of the one to go on with."""
    if config.resume:
        return RunFolder.open(config.out)
    return RunFolder(by_first(lambda: RunFolder.create(config).path))


@contextmanager
def telling_how_to_go_on(run: RunFolder) -> Iterator[None]:
    """Errors of the disk say what to do about them."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{error}. Make room, or the folder writable, and {how_to_resume(run)}") from error


def as_text(table: Any) -> str:
    """A table of rich's as plain text of 120 columns."""
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(table)
    return text.getvalue()
