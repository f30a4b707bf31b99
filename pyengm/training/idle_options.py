"""Options that have no effect under the others. A run refuses them, since whoever gives one expects an effect."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyengm.methods import METHODS, LogsInstances
from pyengm.optim import PerExampleSGD, hyperparameters_of
from pyengm.training.config_groups import ALL_OPTIMIZERS


def idle_options(
    schedule: str, average: str, optimizer: str, method: str, seeds: Sequence[int], extra_data: Path | None
) -> dict[str, str]:
    """Finds the options that nothing reads.

    Args:
        schedule: The name of the schedule.
        average: The name of the average of weights.
        optimizer: The name of the optimiser.
        method: The name of the method.
        seeds: The seeds of several runs.
        extra_data: The file of extra images, None for none.

    Returns:
        The reason for each of them, by flat names.
    """
    idle: dict[str, str] = {}
    readers = {"milestones": ["piecewise"], "lr_decay": ["piecewise"], "pct_start": ["cyclic", "one_cycle"]}
    idle |= _unread(readers, "schedule", schedule)
    idle |= _unread({"ema_decay": ["ema"], "swa_start": ["swa", "median"]}, "average", average)
    for name in ("alpha", "tau", "max_norm", "norms"):
        takers = [known for known, kind in ALL_OPTIMIZERS.items() if name in _arguments(kind)]
        idle |= _unread({name: takers}, "optimizer", optimizer)
    if method == "natural":
        names = ("on_catastrophic_overfitting", "train_attack", "train_attack_examples")
        idle |= dict.fromkeys(names, "it is for adversarial training, not method natural")
    loggers = [known for known, kind in METHODS.items() if issubclass(kind, LogsInstances)]
    idle |= _unread({"instance_log": loggers}, "method", method)
    if extra_data is None:
        idle["extra_fraction"] = "it is for extra_data"
    if seeds:
        idle["seed"] = f"seeds are {' '.join(map(str, seeds))}"
    return idle


def _unread(readers: Mapping[str, Sequence[str]], option: str, value: str) -> dict[str, str]:
    """The reasons for the options that only other values of `option` read."""
    return {
        name: f"it is for {option} {', '.join(values)}, not {value}"
        for name, values in readers.items()
        if value not in values
    }


def _arguments(kind: type[PerExampleSGD]) -> set[str]:
    return {*hyperparameters_of(kind), *kind.stateful_attributes}
