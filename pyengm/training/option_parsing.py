"""Options of methods and optimisers: name=value for the arguments of a class, typed by its signature."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from pyengm.errors import ConfigError
from pyengm.training.option_types import ValueType
from pyengm.utils.did_you_mean import did_you_mean

# Arguments that the trainer gives.
TRAINER_ARGUMENTS = ("self", "params", "eps", "norm", "epochs", "lr", "momentum", "weight_decay", "buffers", "seed")
FLAT_ARGUMENTS = ("step_size", "steps", "bn", "alpha", "tau", "max_norm", "norms")  # have an option of their own


@dataclass(frozen=True)
class Argument:
    """An argument of the constructor of a method or an optimiser.

    Args:
        name: Its name.
        values: The type of its values.
        default: Its value when it is not given.
        text: Its text in the docstring; empty where it has none.
    """

    name: str
    values: ValueType
    default: Any
    text: str

    def parse(self, text: str) -> Any:
        """Returns the value of a text. Raises ValueError for a text of another type."""
        if self.values.optional and text.lower() == "none":
            return None
        return self.values.parse(text)

    @property
    def expected(self) -> str:
        """What a value must be, in words, with the default."""
        or_none = " or none" if self.values.optional else ""
        return f"{self.values.words}{or_none} (default: {format_argument(self.default)})"


@cache
def arguments_of(kind: type) -> dict[str, Argument]:
    """Returns the arguments of a class that a run may set, with those that it forwards to its base by `**options`."""
    found: dict[str, Argument] = {}
    docs = _documented_arguments(kind)
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        hints = get_type_hints(owner.__init__)
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        own = [p for p in named if p.name not in TRAINER_ARGUMENTS]
        found = {
            p.name: Argument(p.name, ValueType.of(hints.get(p.name, str)), p.default, docs.get(p.name, "")) for p in own
        } | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def takes(kind: type, argument: str) -> bool:
    """Returns whether the constructor of a class has that argument."""
    return argument in inspect.signature(kind).parameters


def own_arguments(kind: type) -> dict[str, Argument]:
    """Returns the arguments of a class that have no option of their own: those of --method-options, say."""
    return {name: argument for name, argument in arguments_of(kind).items() if name not in FLAT_ARGUMENTS}


def parse_options(words: Sequence[str], kind: type, option: str) -> dict[str, Any]:
    """Parses the options of a method or an optimiser.

    Args:
        words: The options, each as "name=value".
        kind: The class of the method or the optimiser.
        option: The name of the option that holds the words, for messages.

    Returns:
        Keyword arguments of the class.

    Raises:
        ConfigError: For an unknown name, or a value of another type.
    """
    known = own_arguments(kind)
    parsed = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"{option} has {word!r}; expected NAME=VALUE with a name of {kind.__name__}: "
                f"{', '.join(known) or 'it has none'}{did_you_mean(name, known)}"
            )
        if name in parsed:
            raise ConfigError(f"{option} has {name} twice; expected it once")
        try:
            parsed[name] = known[name].parse(text)
        except ValueError as error:
            raise ConfigError(f"{option} has {word!r}; expected {known[name].expected}") from error
    return parsed


def merge_options(words: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of both; where both name an option, the word of `over`."""
    named = {word.partition("=")[0]: word for word in (*words, *over)}
    return tuple(named.values())


def format_argument(value: Any) -> str:
    """Returns a value as it is written in name=value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).removeprefix("torch.")


def _documented_arguments(kind: type) -> dict[str, str]:
    """The texts of the Args sections of a class and its bases, by argument."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        texts |= _args_section(inspect.cleandoc(vars(owner).get("__doc__") or ""))
    return {name: re.sub(r" \(default: [^()]*\)$", "", text) for name, text in texts.items()}


def _args_section(doc: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    _, _, section = doc.partition("\nArgs:\n")
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        start = re.match(r"    (\w+(?:, \w+)*)(?: \([^)]*\))?: *(.*)", line)
        if start:
            names = start[1].split(", ")
            texts |= dict.fromkeys(names, start[2])
        elif line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts
