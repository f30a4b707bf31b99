"""One run from its options to its results: what `pyengm train` does."""

from typing import Any

import torch

from pyengm import terminal
from pyengm.errors import ConfigError
from pyengm.evaluation import attack_names, check_attacks, plot_curves, results_table
from pyengm.terminal import attack_checkpoints, say, spoken_warnings
from pyengm.training.config import TrainConfig
from pyengm.training.loop import fit
from pyengm.training.run_folder import RunFolder
from pyengm.training.setup import set_up
from pyengm.training.stop import Interrupted


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, evaluates best and last, leaves the table, results.json and curves.png; returns what results.json holds.

    config: resolved options of one run; with `resume`, of that in `out`, whose results are read where it is complete.
    Raises Interrupted after Ctrl-C, with the state saved, and what `set_up` and `fit` do.
    """
    if config.seeds:
        raise ConfigError(f"train makes one run, of one seed, and seeds is {config.seeds}: use train_seeds")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parts = set_up(config)
    attacks = attack_names(config.attacks)
    with spoken_warnings():
        check_attacks(attacks, parts.test, config.threats())  # an error comes now, not after the training
    run = RunFolder.open(config.out) if config.resume else RunFolder.create(config)
    say(f"run folder: {run.path}")
    fit(config, parts, run)
    plot_curves(run.read_metrics(), run.curves, f"{parts.test.name}, {config.method}, {config.optimizer}")
    if run.results.exists():
        say(f"the run is complete; its results are in {run.results}")
        return run.read_results()
    try:
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
        raise Interrupted(f"the training is complete; evaluate it with: pyengm evaluate {run.path}") from None
    run.save_results(results)
    terminal.console.print(results_table(results, str(run.path)))
    say(f"weights, results.json and curves.png are in {run.path}")
    return results
