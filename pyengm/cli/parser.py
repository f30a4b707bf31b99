"""From dataclasses of options to flags of the command line, by tyro."""

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
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

from pyengm.training.option_types import Choice, Metavar, Option, OptionGroup, Unset, options_of
from pyengm.utils.pixels import format_pixels

T = TypeVar("T")
FLAT_FLAGS = (tyro.conf.OmitArgPrefixes,)


def parse(kind: type[T], prog: str, args: Sequence[str], default: T | None = None, *, quiet: bool = False) -> T:
    """Parses flags into a dataclass of options, or of groups of options.

    Args:
        kind: The dataclass.
        prog: The command, for messages and the help.
        args: The words after the command.
        default: The values of options that are not given; None takes the defaults of the dataclass.
        quiet: Whether nothing is printed.

    Raises:
        SystemExit: With status 0 after the help, with 2 for words that do not parse.
    """
    with _plain_off_terminals():
        return tyro.cli(
            kind,
            prog=prog,
            args=list(args),
            default=tyro.MISSING_NONPROP if default is None else default,
            console_outputs=not quiet,
            config=FLAT_FLAGS,
            registry=flag_registry(),
        )


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
            dict(commands), prog=prog, args=words, config=FLAT_FLAGS, registry=flag_registry(completing=True)
        )
    except SystemExit as stop:  # tyro exits after it has printed the script
        if stop.code:
            raise


def flag_registry(*, completing: bool = False) -> ConstructorRegistry:
    """Returns the rules by which tyro reads groups of options.

    Args:
        completing: Whether the flags are for completion, for which tyro needs the choices. In parsing `Choice` checks
            them, with a suggestion.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def group(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, OptionGroup)):
            return None
        options, texts = options_of(info.type), _attribute_docs(info.type)
        specs = []
        for one in fields(info.type):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(info.default, one.name, one.default)
            value = tyro.MISSING_NONPROP if value is MISSING else value
            hint = _hint_of(options[one.name], value, texts.get(one.name), completing)
            specs.append(StructFieldSpec(one.name, hint, value))
        return StructConstructorSpec(instantiate=info.type, fields=tuple(specs))

    return registry


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


def _hint_of(option: Option, default: Any, text: str | None, completing: bool) -> Any:
    unset = option.mark(Unset)
    meaning = unset.meaning if unset else "by the recipe"
    behavior = f"(default: {meaning})" if default in (None, ()) else None
    argument = tyro.conf.arg(name=option.name, help=text, help_behavior_hint=behavior)
    spec = () if option.values.kind is bool else (_spec(option, completing),)
    kind = tuple[option.values.kind, ...] if option.values.many else option.values.kind
    return Annotated[(kind if default is not None else kind | None, *option.values.marks, argument, *spec)]


def _spec(option: Option, completing: bool) -> PrimitiveConstructorSpec:
    """How words become a value, and a value words."""
    kind, choice, metavar = option.values, option.mark(Choice), option.mark(Metavar)
    name = metavar.text if metavar else f"{{{','.join(choice.known)}}}" if choice else kind.metavar

    def to_words(value: Any) -> list[str]:
        return [_word(part, metavar) for part in (value if isinstance(value, tuple) else (value,))]

    return PrimitiveConstructorSpec(
        nargs="*" if kind.many else 1,
        metavar=f"[{name} ...]" if kind.many else name,
        instance_from_str=lambda words: tuple(map(kind.parse, words)) if kind.many else kind.parse(words[0]),
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
