"""The options that decide a training, by which runs are grouped and distinguished."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyengm.methods import METHODS
from pyengm.training import TrainConfig
from pyengm.training.config import MAY_CHANGE, PER_CALL
from pyengm.training.config_groups import ALL_OPTIMIZERS, RecordConfig
from pyengm.training.idle_options import idle_options
from pyengm.training.option_parsing import own_arguments, parse_options
from pyengm.training.option_types import options_of
from pyengm.utils.pixels import format_pixels

# Options of the call, of the machine, of the evaluation and of what is recorded, which leave the training as it is.
NOT_OF_THE_TRAINING = frozenset(
    {*PER_CALL, *MAY_CHANGE, *options_of(RecordConfig), "seed", "cpu_threads", "eval_both_threats"}
    | {"train_attack", "train_attack_examples", "method_options", "optimizer_options"}
)
PLAIN_NAMES = ("data", "model", "method", "optimizer")  # options whose values say what they are
assert {one.name for one in fields(RecordConfig)} <= NOT_OF_THE_TRAINING

Options = Mapping[str, Any]


def training_options(config: TrainConfig) -> dict[str, Any]:
    """Returns the options that decide the training, by name; those of a method or optimiser as in "trades.beta".

    Options that count epochs and follow their number by default, such as milestones, are shares of the run.

    Args:
        config: The options of a run, resolved.
    """
    found = {name: config.get(name) for name in config.options if name not in NOT_OF_THE_TRAINING}
    epochs = config.schedule.epochs
    for name in ("milestones", "swa_start"):
        if (value := found.pop(name)) is not None:
            value = value if isinstance(value, tuple) else (value,)
            found[f"{name} / epochs"] = tuple(round(one / epochs, 4) for one in value)
    found |= dict.fromkeys(_idle(config) & found.keys())
    owners = {"method": METHODS[config.method.name], "optimizer": ALL_OPTIMIZERS[config.optimizer.name]}
    given = {"method": config.method.options, "optimizer": config.optimizer.options}
    for owner, kind in owners.items():
        name = config.get(owner)
        values = {argument: one.default for argument, one in own_arguments(kind).items()}
        values |= parse_options(given[owner], kind, f"{owner}_options")
        found |= {f"{name}.{argument}": value for argument, value in values.items()}
    return found


def _idle(config: TrainConfig) -> set[str]:
    """The options without an effect, whose defaults say nothing."""
    kinds = {name: config.get(name) for name in ("schedule", "average", "optimizer", "method")}
    return set(idle_options(**kinds, seeds=(), extra_data=config.data.extra_data))


def differing_options(runs: Sequence[Options]) -> list[str]:
    """Returns the names of the options that differ and do not follow from the method and the optimiser.

    alpha, which msgd has not, differs where two runs have one and it is not the same.
    """
    names = list(dict.fromkeys(name for options in runs for name in options))
    return [name for name in names if _differs(name, runs)]


def _differs(name: str, runs: Sequence[Options]) -> bool:
    if len({options[name] for options in runs if options.get(name) is not None}) > 1:
        return True
    by_kind: dict[Any, set[Any]] = {}
    for options in runs:
        by_kind.setdefault((options["method"], options["optimizer"]), set()).add(options.get(name))
    return any(len(values) > 1 for values in by_kind.values())


def is_in_pixels(name: str) -> bool:
    """Returns whether an option is a radius or a step size in pixel units."""
    owner, _, argument = name.rpartition(".")
    return name in ("eps", "step_size") or (owner in METHODS and argument in METHODS[owner].info.pixel_options)


def pixel_scale(name: str, values: Sequence[float]) -> int:
    """Returns 255 for radii and step sizes that are whole numbers of levels, such as 8/255, else 1."""
    levels = [255 * value for value in values]
    return 255 if is_in_pixels(name) and all(abs(level - round(level)) < 1e-6 for level in levels) else 1


def value_text(name: str, value: Any) -> str:
    """Returns the value of an option as people write it; "-" for one that there is not."""
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_pixels(value) if is_in_pixels(name) else f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(value_text(name, one) for one in value)
    return value.name if isinstance(value, Path) else str(value)


def describe_options(runs: Sequence[Options]) -> list[str]:
    """Returns a line for each of several runs with options that tell them apart, such as "engm, alpha=5".

    What a run is comes first, then words and switches, then numbers. An option that follows from those before it, such
    as the learning rate of a method, is left out.
    """
    names = sorted(differing_options(runs), key=lambda name: _rank(name, runs))  # stable
    kept: list[str] = []
    for name in names:
        before, after = (len({_values(one, options) for options in runs}) for one in (kept, [*kept, name]))
        kept += [name] if after > before else []
    return [values_text(kept, options) for options in runs]


def _rank(name: str, runs: Sequence[Options]) -> int:
    if name in PLAIN_NAMES:
        return 0
    return 2 if any(is_number(options.get(name)) for options in runs) else 1


def _values(names: Sequence[str], options: Options) -> tuple[Any, ...]:
    return tuple(options.get(name) for name in names)


def values_text(names: Sequence[str], options: Options) -> str:
    """Returns the values of options in one line."""
    parts = [(name, value_text(name, options.get(name))) for name in names]
    own = [text if name in PLAIN_NAMES else f"{name.rpartition('.')[2]}={text}" for name, text in parts if text != "-"]
    return ", ".join(own)


def numeric_values(name: str, options: Sequence[Options]) -> list[float] | None:
    """Returns the values of an option in all runs; None where one of them is no number, or they are all the same."""
    values = [float(value) for one in options if (value := one.get(name)) is not None and is_number(value)]
    return values if len(values) == len(options) and len(set(values)) > 1 else None


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, and no switch."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
