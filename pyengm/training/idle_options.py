"""Options that have no effect under the others. A run refuses them, since whoever gives one expects an effect."""

from collections.abc import Sequence

from pyengm.methods import METHODS, LogsInstances
from pyengm.optim import PerExampleSGD, hyperparameters_of
from pyengm.training.config_groups import ALL_OPTIMIZERS


def idle_options(schedule: str, average: str, optimizer: str, method: str, seeds: Sequence[int]) -> dict[str, str]:
    """Finds the options that nothing reads.

    Args:
        schedule: The name of the schedule.
        average: The name of the average of weights.
        optimizer: The name of the optimiser.
        method: The name of the method.
        seeds: The seeds of several runs.

    Returns:
        The reason for each of them, by flat names.
    """
    idle: dict[str, str] = {}
    readers = {"milestones": "piecewise", "lr_decay": "piecewise", "pct_start": "cyclic"}
    idle |= {name: f"it is for schedule {one}, not {schedule}" for name, one in readers.items() if one != schedule}
    readers = {"ema_decay": "ema", "swa_start": "swa"}
    idle |= {name: f"it is for average {one}, not {average}" for name, one in readers.items() if one != average}
    for name in ("alpha", "tau", "max_norm", "norms"):
        takers = [known for known, kind in ALL_OPTIMIZERS.items() if name in _arguments(kind)]
        if optimizer not in takers:
            idle[name] = f"it is for optimizer {', '.join(takers)}, not {optimizer}"
    if method == "natural":
        names = ("on_catastrophic_overfitting", "train_attack", "train_attack_examples")
        idle |= dict.fromkeys(names, "it is for adversarial training, not method natural")
    loggers = [known for known, kind in METHODS.items() if issubclass(kind, LogsInstances)]
    if method not in loggers:
        idle["instance_log"] = f"it is for method {', '.join(loggers)}, not {method}"
    if seeds:
        idle["seed"] = f"seeds are {' '.join(map(str, seeds))}"
    return idle


def _arguments(kind: type[PerExampleSGD]) -> set[str]:
    return {*hyperparameters_of(kind), *kind.stateful_attributes}
