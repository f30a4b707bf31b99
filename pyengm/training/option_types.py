"""Types of options: annotations that the command line, YAML and Python share, and the texts that they accept."""

import os
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch

from pyengm.errors import ConfigError
from pyengm.utils.did_you_mean import match_name
from pyengm.utils.pixels import parse_number

FROM_RECIPE: Any = None  # the default of an option that `TrainConfig.resolve` fills in: its type is that after it


@dataclass(frozen=True)
class Flag:
    """The flat name of an option, where it is not the name of its field."""

    name: str


@dataclass(frozen=True)
class Metavar:
    """The placeholder of a value in the help, where it is not the name of its type."""

    text: str


@dataclass(frozen=True)
class Unset:
    """The meaning of None or of an empty list, in words for the help."""

    meaning: str


@dataclass(frozen=True)
class Choice:
    """A value must be one of `known`, which is read at every check, since a registry may grow."""

    known: Collection[str]

    def match(self, name: str, value: str) -> str:
        """Returns the known name that a value is, in upper or lower case. Raises ConfigError where there is none."""
        return match_name(value, self.known, name)


@dataclass(frozen=True)
class Expect:
    """A value must satisfy `holds`, which `expected` puts in words."""

    expected: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError for a value that does not satisfy it."""
        if not self.holds(value):
            verb = "are" if isinstance(value, tuple) else "is"
            raise ConfigError(f"{name} {verb} {value}; expected {self.expected}")


NAME_MAX = 255  # bytes of the name of a file
LIMIT = 2**31  # of counts: more is a slip of the pen, and overflows somewhere
is_non_negative = Expect("a finite number >= 0", lambda value: 0 <= value < float("inf"))
is_positive = Expect("a finite number > 0", lambda value: 0 < value < float("inf"))
is_step_size = Expect(
    "a number above 0 and at most 1 in units of pixels in [0, 1], such as 2/255", lambda value: 0 < value <= 1
)
Count = Annotated[int, Expect("at least 1, and less than 2**31", lambda value: 1 <= value < LIMIT)]
Positive = Annotated[float, is_positive]
NonNegative = Annotated[float, is_non_negative]
Share = Annotated[float, Expect("a share from 0 to less than 1", lambda value: 0 <= value < 1)]
Pixels = Annotated[float, Metavar("PIXELS")]


def _parse_word(text: str) -> str:
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if not text or "\0" in text or longest > NAME_MAX:
        raise ValueError(text)
    return text


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _parse_dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(text)
    return dtype


@dataclass(frozen=True)
class _Kind:
    """How values of a type are parsed, and its name in the help and in words."""

    parse: Callable[[str], Any]
    metavar: str
    words: str


_KINDS: dict[Any, _Kind] = {
    bool: _Kind(_parse_bool, "true|false", "true or false"),
    int: _Kind(int, "INT", "an integer"),
    float: _Kind(parse_number, "FLOAT", "a number"),
    str: _Kind(_parse_word, "STR", "a word"),
    Path: _Kind(lambda text: Path(_parse_word(text)), "PATH", "a path"),
    torch.dtype: _Kind(_parse_dtype, "DTYPE", "a floating-point type of torch, such as float16"),
}


@dataclass(frozen=True)
class ValueType:
    """The type of a value, without its annotations.

    Args:
        kind: bool, int, float, str, Path, torch.dtype or a Literal of strings.
        optional: Whether None is a value too.
        many: Whether a value is a tuple of any number of `kind`.
        marks: The annotations, such as `Choice`.
    """

    kind: Any
    optional: bool = False
    many: bool = False
    marks: tuple[Any, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> "ValueType":
        """Returns the type that a hint describes; see `typing.get_type_hints`."""
        if get_origin(hint) is Annotated:
            inner = cls.of(get_args(hint)[0])
            return cls(inner.kind, inner.optional, inner.many, (*get_args(hint)[1:], *inner.marks))
        if get_origin(hint) in (Union, types.UnionType):
            (member,) = (member for member in get_args(hint) if member is not type(None))
            inner = cls.of(member)
            return cls(inner.kind, True, inner.many, inner.marks)
        if get_origin(hint) is tuple:
            inner = cls.of(get_args(hint)[0])
            return cls(inner.kind, False, True, inner.marks)
        return cls(hint)

    def parse(self, text: str) -> Any:
        """Returns one value, given as text. Raises ValueError for a text of another type."""
        if get_origin(self.kind) is Literal:
            if text not in get_args(self.kind):
                raise ValueError(f"{text!r} is not {self.words}")
            return text
        try:
            return _KINDS[self.kind].parse(text)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{text!r} is not {self.words}") from error

    def convert(self, value: Any) -> Any:
        """Returns one value of Python or YAML as this type; texts are parsed, and a bool is no number.

        Raises:
            ValueError: For a value of another type.
        """
        if isinstance(value, (str, os.PathLike)) and self.kind is not bool:
            return self.parse(os.fspath(value))
        kinds: dict[Any, Any] = {bool: bool, int: Integral, float: Real}
        if not isinstance(value, kinds.get(self.kind, ())) or isinstance(value, bool) != (self.kind is bool):
            raise ValueError(f"{value!r} is not {self.words}")
        return self.kind(value)

    @property
    def metavar(self) -> str:
        """The placeholder of one value in the help."""
        if get_origin(self.kind) is Literal:
            return f"{{{','.join(get_args(self.kind))}}}"
        return _KINDS[self.kind].metavar

    @property
    def words(self) -> str:
        """What one value must be, in words."""
        if get_origin(self.kind) is Literal:
            return f"one of {', '.join(get_args(self.kind))}"
        return _KINDS[self.kind].words


@dataclass(frozen=True)
class Option:
    """One field of a group of options.

    Args:
        group: The name of the group in `TrainConfig`, such as "attack".
        field: The name of the field in the group, such as "steps".
        name: The flat name, unique over all groups, such as "attack_steps".
        values: The type of its values.
        required: Whether it has no default.
    """

    group: str
    field: str
    name: str
    values: ValueType
    required: bool

    @property
    def item(self) -> str:
        """What one value is called, such as "attack" for attacks."""
        return self.name.removesuffix("s") if self.values.many else self.name

    def mark(self, kind: type) -> Any:
        """Returns the annotation of that class, or None."""
        return next((mark for mark in self.values.marks if isinstance(mark, kind)), None)

    def convert(self, value: Any) -> Any:
        """Returns a value of Python or YAML as the type of the field, with names as the registry has them.

        Raises:
            ConfigError: For a value of another type, and for one that the annotations exclude.
        """
        if value is None:
            return None
        kind = self.values
        converted: Any
        try:
            if not kind.many:
                converted = kind.convert(value)
            elif isinstance(value, (list, tuple)):
                converted = tuple(map(kind.convert, value))
            else:
                raise ValueError(value)
        except ValueError as error:
            expected = f"a list, each {kind.words}" if kind.many else kind.words
            raise ConfigError(f"{self.name} is {value!r}; expected {expected}") from error
        for mark in kind.marks:
            if isinstance(mark, Choice):
                parts = [mark.match(self.item, part) for part in (converted if kind.many else (converted,))]
                converted = tuple(parts) if kind.many else parts[0]
            elif isinstance(mark, Expect):
                mark.check(self.name, converted)
        return converted


class OptionGroup:
    """Base of the dataclasses of options: converts and checks every value by the annotations of its field.

    Raises:
        ConfigError: For a value that is not allowed.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            if value is None and type(self).__dict__.get(name) is not None:
                raise ConfigError(f"{option.name} is None; expected {option.values.words}")
            object.__setattr__(self, name, option.convert(value))  # the dataclasses are frozen


@cache
def options_of(kind: type[OptionGroup]) -> dict[str, Option]:
    """Returns the options of a group by the names of its fields."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is ClassVar:
            continue
        type_ = ValueType.of(hint)
        flag = next((mark.name for mark in type_.marks if isinstance(mark, Flag)), name)
        found[name] = Option(kind.group, name, flag, type_, required=name not in vars(kind))
    return found
