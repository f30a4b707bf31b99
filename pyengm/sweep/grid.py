"""A grid of options: the runs that it consists of."""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from pyengm.comparison.options import (
    NOT_OF_THE_TRAINING,
    describe_options,
    training_options,
)
from pyengm.errors import ConfigError
from pyengm.training import TrainConfig
from pyengm.training.option_parsing import merge_options
from pyengm.utils.did_you_mean import did_you_mean

WORDS = ("method_options", "optimizer_options")  # words NAME=VALUE, which are added to those that are given
IN_GRIDS = [name for name in TrainConfig.options if name in WORDS or name not in NOT_OF_THE_TRAINING]
SWITCH = {"true": True, "false": False}


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """Parses the options of a grid.

    Args:
        words: Each "NAME=VALUE,VALUE", with an option of pyengm train; the words of one value are apart by spaces.

    Returns:
        The values by flat name, not yet checked.

    Raises:
        ConfigError: A word has another form, an option decides no training, or an option or a value comes twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        flag, equals, texts = word.partition("=")
        name = flag.strip().removeprefix("--").replace("-", "_")
        values = [text.strip() for text in texts.split(",")]
        if not equals or not all(values):
            raise ConfigError(f"grid has {word!r}; expected OPTION=VALUE,VALUE, such as alpha=1,5")
        if name not in IN_GRIDS:
            reason = "is no option that decides a training"
            reason = "has its own option, --seeds" if name in ("seed", "seeds") else reason
            raise ConfigError(f"grid has {flag!r}, which {reason}{did_you_mean(name, IN_GRIDS)}")
        if name in grid or len(set(values)) < len(values):
            raise ConfigError(f"grid has {name} or one of its values twice: {word}; give each of them once")
        grid[name] = [_value(name, text) for text in values]
    return grid


def _value(name: str, text: str) -> Any:
    kind = TrainConfig.options[name].values
    if kind.many:
        return text.split()
    return SWITCH.get(text.lower(), text) if kind.kind is bool else text


def grid_points(
    base: TrainConfig, grid: Mapping[str, Sequence[Any]], keep: Collection[str] = ()
) -> dict[str, TrainConfig]:
    """Returns the runs of a grid by their names, such as "engm, alpha=5".

    An option of the grid that has no effect at a point, such as alpha under msgd, is left out there, and points that
    become the same are one run.

    Args:
        base: The options that all runs share, as they are given, not resolved.
        grid: The values by flat name.
        keep: The flat names of the shared options that a user has given: without an effect they are refused.

    Raises:
        ConfigError: A value is not allowed, options do not fit together, or an option of the grid has no effect at all.
    """
    idle, found = set(grid), []
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        given = base.override(**{name: _merged(base, name, value) for name, value in point.items()})
        kept = given.drop_idle(keep=keep)
        idle -= {name for name in point if name in WORDS or kept.get(name) == given.get(name)}
        config = kept.resolve()
        if all(training_options(config) != training_options(other) for other in found):
            found.append(config)
    if idle:
        raise ConfigError(f"grid has {', '.join(sorted(idle))}, which has no effect at any of its points: leave it out")
    return named_points(found)


def _merged(base: TrainConfig, name: str, value: Any) -> Any:
    return merge_options(base.get(name), value) if name in WORDS else value


def named_points(configs: Sequence[TrainConfig]) -> dict[str, TrainConfig]:
    """Returns different runs by the options that differ between them.

    Args:
        configs: The runs, resolved.
    """
    texts = describe_options([training_options(config) for config in configs])
    found: dict[str, TrainConfig] = {}
    for config, text in zip(configs, texts, strict=True):
        stem = text or "run"
        name = next(name for name in (stem, *(f"{stem} {i}" for i in range(2, len(configs) + 2))) if name not in found)
        found[name] = config
    return found
