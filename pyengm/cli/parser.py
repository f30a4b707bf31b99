"""From dataclasses of options to flags of the command line, by tyro."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from pyengm.training.option_types import Choice, Metavar, Option, OptionGroup, Unset, options_of, parse_number, unwrap

T = TypeVar("T")
METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
PARSERS: dict[Any, Callable[[str], Any]] = {int: int, float: parse_number, str: str, Path: Path}


def parse(kind: type[T], prog: str, args: Sequence[str], default: T | None = None) -> T:
    """Parses flags into a dataclass of options, or of groups of options.

    Args:
        kind: The dataclass.
        prog: The command, for messages and the help.
        args: The words after the command.
        default: The options that are not given, else the defaults of the dataclass.

    Raises:
        SystemExit: With status 0 after the help, with 2 for words that do not parse.
    """
    return tyro.cli(
        kind,
        prog=prog,
        args=list(args),
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_registry(),
    )


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.struct_rule(_struct_of)
    return registry


def _struct_of(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The fields of a dataclass as tyro reads them; a dataclass of groups is left to tyro itself."""
    kind = info.type
    if not (isinstance(kind, type) and issubclass(kind, OptionGroup) and is_dataclass(kind)):
        return None
    options, texts = options_of(kind), _attribute_docs(kind)
    specs = []
    for one in fields(kind):
        default = getattr(info.default, one.name, one.default)
        default = tyro.MISSING_NONPROP if default is MISSING else default
        option = options[one.name]
        specs.append(StructFieldSpec(one.name, _field_type(option, default, texts.get(one.name)), default))
    return StructConstructorSpec(instantiate=kind, fields=tuple(specs))


def _field_type(option: Option, default: Any, text: str | None) -> Any:
    unset = option.mark(Unset)
    hint = f"(default: {unset.meaning})" if unset is not None and default in (None, ()) else None
    argument = tyro.conf.arg(name=option.name, help=text, help_behavior_hint=hint)
    kind = option.kind if default is not None else option.kind | None
    spec = () if option.kind is bool else (_spec(option),)
    return Annotated[(kind, *option.marks, argument, *spec)]


def _spec(option: Option) -> PrimitiveConstructorSpec:
    """How words become a value, and a value words."""
    many = get_origin(option.kind) is tuple
    kind = unwrap(get_args(option.kind)[0])[0] if many else option.kind
    choice, metavar = option.mark(Choice), option.mark(Metavar)
    name = metavar.text if metavar else METAVARS[kind]
    convert = PARSERS[kind]
    return PrimitiveConstructorSpec(
        nargs="*" if many else 1,
        metavar=f"[{name} [{name} ...]]" if many else f"{{{','.join(choice.known)}}}" if choice else name,
        instance_from_str=lambda words: tuple(map(convert, words)) if many else convert(words[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [_word(part) for part in (value if isinstance(value, tuple) else (value,))],
    )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _attribute_docs(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, by field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            texts[before.target.id] = " ".join(str(after.value.value).split())
    return texts
