"""From dataclasses of options to flags of the command line, by tyro."""

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from pyengm.errors import ConfigError, UsageError
from pyengm.training.option_types import Choice, Metavar, Option, OptionGroup, Unset, options_of
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.pixels import format_pixels

T = TypeVar("T")
FLAT_FLAGS = (tyro.conf.OmitArgPrefixes,)
HELP = ("-h", "--help")


class _Carrier(Exception):
    """Carries an error through tyro, which turns errors of values into its own output."""

    def __init__(self, error: ConfigError):
        super().__init__(str(error))
        self.error = error


def parse(kind: type[T], prog: str, args: Sequence[str], default: T | None = None) -> T:
    """Parses flags into a dataclass of options, or of groups of options.

    Args:
        kind: The dataclass.
        prog: The command, for messages and the help.
        args: The words after the command.
        default: The values of options that are not given; None takes the defaults of the dataclass.

    Raises:
        UsageError: For words that do not parse.
        ConfigError: For values that are not allowed, or that do not fit together.
        SystemExit: With status 0 after the help.
    """
    if not any(word in HELP for word in args):
        _check_values(kind, prog, args)
    try:
        with _plain_off_terminals():
            options, unknown = tyro.cli(
                kind,
                prog=prog,
                args=list(args),
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=FLAT_FLAGS,
                registry=flag_registry(prog),
            )
    except _Carrier as carrier:
        raise carrier.error from carrier
    if unknown:
        raise _usage_error(_unknown(unknown[0], kind), prog)
    return options


def print_completion(commands: Mapping[str, type], prog: str, shell: str) -> None:
    """Prints a completion script for a program with commands.

    Args:
        commands: The dataclass of options of each command.
        prog: The name of the program.
        shell: bash, zsh or fish.
    """
    words = ["--tyro-print-completion", shell]
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog=prog, args=words, config=FLAT_FLAGS, registry=flag_registry(prog, completing=True)
        )
    except SystemExit as stop:  # tyro exits after it has printed the script
        if stop.code:
            raise


def flag_of(name: str) -> str:
    """The flag of an option, such as --attack-steps for attack_steps."""
    return "--" + name.replace("_", "-")


def flags_in(args: Sequence[str]) -> set[str]:
    """The flat names of the options whose flags are among the words of a command line."""
    flags = (word.partition("=")[0] for word in args if word.startswith("--"))
    return {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}


def _usage_error(message: str, prog: str) -> UsageError:
    return UsageError(f"{message}; see {prog} --help")


def flag_registry(prog: str, *, completing: bool = False) -> ConstructorRegistry:
    """Returns the rules by which tyro reads groups of options.

    Args:
        prog: The command, for messages.
        completing: Whether the flags are for completion, for which tyro needs the choices. In parsing `Choice` checks
            them, with a suggestion.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def groups(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind = info.type
        if not is_dataclass(kind) or not all(_is_group(one.type) for one in fields(kind)):
            return None
        default = info.default if isinstance(info.default, kind) else kind()
        groups: list[tuple[str, Any]] = [(one.name, one.type) for one in fields(kind)]
        specs = [StructFieldSpec(name, group, getattr(default, name)) for name, group in groups]
        return StructConstructorSpec(instantiate=_builder(kind, prog), fields=tuple(specs))

    @registry.struct_rule
    def group(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind = info.type
        if not _is_group(kind):
            return None
        options, texts = options_of(kind), _attribute_docs(kind)
        specs = []
        for one in fields(kind):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(info.default, one.name, one.default)
            value = None if value is MISSING else value  # `_build` refuses it, in one line
            hint = _hint_of(options[one.name], value, texts.get(one.name), _spec(options[one.name], prog, completing))
            specs.append(StructFieldSpec(one.name, hint, value))
        return StructConstructorSpec(instantiate=_builder(kind, prog), fields=tuple(specs))

    return registry


def _builder(kind: type, prog: str) -> Callable[..., Any]:
    """A function that builds the dataclass, whose errors tyro does not see; it has its text for the help."""

    def build(**values: Any) -> Any:
        return _build(kind, prog, **values)

    build.__doc__ = kind.__doc__
    return build


def _build(kind: type, prog: str, **values: Any) -> Any:
    for option in options_of(kind).values() if _is_group(kind) else ():
        if option.required and values[option.field] is None:
            raise _Carrier(_usage_error(f"{option.name} is missing; expected {option.values.words}", prog))
    try:
        return kind(**values)
    except ConfigError as error:
        raise _Carrier(error) from error


def _check_values(kind: type, prog: str, args: Sequence[str]) -> None:
    """Checks that every flag that takes a value has one; tyro's own message has many lines."""
    options = {flag_of(option.name): option for option in _options(kind) if not option.values.many}
    known = {flag_of(option.name) for option in _options(kind)}
    for word, following in zip(args, [*args, None][1:], strict=True):
        option = options.get(word.replace("_", "-")) if word.startswith("--") else None
        if option is None or option.values.kind is bool:
            continue
        if following is None or following.partition("=")[0] in known:
            raise _usage_error(f"{word} has no value; expected {option.values.words}", prog)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, OptionGroup)


def _options(kind: type) -> list[Option]:
    if _is_group(kind):
        return list(options_of(kind).values())
    groups = (one.type for one in fields(kind))  # type: ignore[arg-type]
    return [option for group in groups for option in options_of(group).values()]  # type: ignore[arg-type]


def _unknown(word: str, kind: type) -> str:
    flag, flags = word.partition("=")[0], [flag_of(option.name) for option in _options(kind)]
    if flag.startswith("--"):
        return f"unknown option {flag}{did_you_mean(flag, flags)}"
    return f"unexpected word {word!r}; expected options, such as {flags[-1]}"


@contextmanager
def _plain_off_terminals() -> Iterator[None]:
    """Boxes only on terminals, and colours only there and without NO_COLOR in the environment (https://no-color.org)."""
    options = tyro._experimental_options
    before = options.copy()
    options["utf8_boxes"] = sys.stdout.isatty() and sys.stderr.isatty()
    options["ansi_codes"] = options["utf8_boxes"] and not os.environ.get("NO_COLOR")
    try:
        yield
    finally:
        options.update(before)


def _hint_of(option: Option, default: Any, text: str | None, spec: PrimitiveConstructorSpec) -> Any:
    unset = option.mark(Unset)
    meaning = unset.meaning if unset else "by the recipe"
    behavior = f"(default: {meaning})" if default in (None, ()) else None
    behavior = "(required)" if option.required else behavior
    argument = tyro.conf.arg(name=option.name, help=text, help_behavior_hint=behavior)
    specs = () if option.values.kind is bool else (spec,)
    kind = tuple[option.values.kind, ...] if option.values.many else option.values.kind
    return Annotated[(kind if default is not None else kind | None, *option.values.marks, argument, *specs)]


def _spec(option: Option, prog: str, completing: bool) -> PrimitiveConstructorSpec:
    """How words become a value, and a value words."""
    kind, choice, metavar = option.values, option.mark(Choice), option.mark(Metavar)
    name = metavar.text if metavar else f"{{{','.join(choice.known)}}}" if choice else kind.metavar

    def to_words(value: Any) -> list[str]:
        return [_word(part, metavar) for part in (value if isinstance(value, tuple) else (value,))]

    def from_words(words: list[str]) -> Any:
        try:
            values = tuple(map(kind.parse, words))
            if choice:
                values = tuple(choice.match(option.item, value) for value in values)
        except ConfigError as error:
            raise _Carrier(_usage_error(str(error), prog)) from error
        except ValueError as error:
            message = f"{flag_of(option.name)} is {' '.join(words)!r}; expected {kind.words}"
            raise _Carrier(_usage_error(message, prog)) from error
        return values if kind.many else values[0]

    return PrimitiveConstructorSpec(
        nargs="*" if kind.many else 1,
        metavar=f"[{name} ...]" if kind.many else name,
        instance_from_str=from_words,
        is_instance=lambda _: True,
        str_from_instance=to_words,
        choices=tuple(choice.known) if choice and completing else None,
    )


def _word(value: Any, metavar: Metavar | None) -> str:
    if isinstance(value, float):
        return format_pixels(value) if metavar else f"{value:g}"
    return str(value)


@cache
def _attribute_docs(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, by field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                texts[name] = " ".join(str(text).split())
    return texts
