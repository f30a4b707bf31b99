"""Types of options: annotations that the command line, YAML and Python share, and what they allow."""

import types
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pyengm.errors import ConfigError
from pyengm.utils.did_you_mean import did_you_mean


@dataclass(frozen=True)
class Flag:
    """The flat name of an option, where it is not the name of its field."""

    name: str


@dataclass(frozen=True)
class Metavar:
    """What stands for the value in the help, where it is not the name of its type."""

    text: str


@dataclass(frozen=True)
class Unset:
    """What a value of None means, in words for the help."""

    meaning: str


@dataclass(frozen=True)
class Choice:
    """A value must be one of `known`, which is read anew at every check: a registry may grow."""

    known: Collection[str]

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError for a value that is not one of them."""
        if value not in self.known:
            hint = did_you_mean(str(value), self.known)
            raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(self.known)}{hint}")


@dataclass(frozen=True)
class Expect:
    """A value must satisfy `holds`; `expected` says so in words."""

    expected: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError for a value that does not satisfy it."""
        if not self.holds(value):
            verb = "are" if isinstance(value, tuple) else "is"
            raise ConfigError(f"{name} {verb} {value}; expected {self.expected}")


is_non_negative = Expect("a finite number >= 0", lambda value: 0 <= value < float("inf"))
Count = Annotated[int, Expect("at least 1", lambda value: value >= 1)]
NonNegative = Annotated[float, is_non_negative]
Share = Annotated[float, Expect("a share from 0 to less than 1", lambda value: 0 <= value < 1)]
Pixels = Annotated[float, Metavar("PIXELS")]


FROM_RECIPE: Any = None  # the default of an option that `TrainConfig.resolve` fills in: its type is that after it


def parse_number(text: str) -> float:
    """A number, also as a fraction: "0.2" or "8/255"."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


@dataclass(frozen=True)
class Option:
    """One field of a group of options.

    Args:
        group: The name of the group in `TrainConfig`, such as "attack".
        field: The name of the field in the group, such as "steps".
        name: The flat name, unique over all groups, such as "attack_steps".
        kind: The type of a value: bool, int, float, str, Path, or a tuple of one of these.
        marks: The annotations of the field, such as `Choice`.
        default: What the field is when it is not given.
    """

    group: str
    field: str
    name: str
    kind: Any
    marks: tuple[Any, ...]
    default: Any

    def mark(self, kind: type) -> Any:
        """The annotation of that class, or None."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)

    def check(self, value: Any) -> None:
        """Raises ConfigError for a value that the annotations rule out."""
        if value is None:
            return
        for mark in self.marks:
            if isinstance(mark, (Choice, Expect)):
                mark.check(self.name, value)

    def from_yaml(self, where: str, value: Any) -> Any:
        """A value of YAML as the type of the field; fractions such as 8/255 are numbers too."""
        try:
            return None if value is None else _convert(self.kind, value)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            kind = " of ".join(k.__name__ for k in _kinds(self.kind))
            raise ConfigError(f"{where}: {self.name} is {value!r}, which is no {kind}: {error}") from error


class OptionGroup:
    """Base of the dataclasses of options: checks every value against the annotations of its field.

    Raises:
        ConfigError: For a value that is not allowed.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            option.check(getattr(self, name))


@cache
def options_of(kind: type[OptionGroup]) -> dict[str, Option]:
    """Returns the options of a group by the names of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: _option(kind.group, one, hints[one.name]) for one in fields(kind)}


def _option(group: str, one: Field, hint: Any) -> Option:
    kind, marks = unwrap(hint)
    flag = next((mark.name for mark in marks if isinstance(mark, Flag)), one.name)
    return Option(group, one.name, flag, kind, marks, None if one.default is MISSING else one.default)


def unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated` and `| None`, and the annotations that were around it."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        inner, more = unwrap(kind)
        return inner, (*marks, *more)
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        if len(members) == 1:
            return unwrap(members[0])
    return hint, ()


def _kinds(kind: Any) -> tuple[type, ...]:
    return (tuple, unwrap(get_args(kind)[0])[0]) if get_origin(kind) is tuple else (kind,)


def _convert(kind: Any, value: Any) -> Any:
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            raise ValueError("expected a list")
        element = unwrap(get_args(kind)[0])[0]
        return tuple(_convert(element, part) for part in value)
    if kind is bool and not isinstance(value, bool):
        raise ValueError("expected true or false")
    if kind is float:
        return parse_number(str(value))
    if kind is int and int(value) != value:
        raise ValueError("expected a whole number")
    return {Path: Path, bool: bool, int: int, str: str}[kind](value)
