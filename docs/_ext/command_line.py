"""The reference of the command line, from the options that the parser reads."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pyengm.cli.completion import option_classes
from pyengm.cli.parser import _attribute_docs, flag_of
from pyengm.methods import METHODS
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.option_parsing import format_argument, own_arguments
from pyengm.training.option_types import Choice, Metavar, Option, OptionGroup, Unset, options_of


def reference() -> str:
    """A section for each command, in Markdown."""
    return "\n".join(line for name, kind in option_classes().items() for line in _command(name, kind))


def argument_options() -> str:
    """The options of `--method-options` and `--optimizer-options`, by class."""
    kinds = {"--method-options": METHODS, "--optimizer-options": ALL_OPTIMIZERS}
    return "\n".join(line for flag, registry in kinds.items() for line in _argument_options(flag, registry))


def _command(name: str, kind: type) -> Iterator[str]:
    yield from (f"## pyengm {name}", "", " ".join((kind.__doc__ or "").split()), "")
    if issubclass(kind, OptionGroup):
        yield from _options(kind)
        return
    for group in fields(kind):  # type: ignore[arg-type]
        yield from (f"### {group.name}", "", " ".join((group.type.__doc__ or "").split()), "")  # type: ignore[union-attr]
        yield from _options(group.type)  # type: ignore[arg-type]


def _options(group: Any) -> Iterator[str]:
    texts = _attribute_docs(group)
    required = {one.name: one for one in fields(group)}
    for field, option in options_of(group).items():
        text = texts.get(field, "").replace("*", r"\*").replace("<", r"\<")
        yield from (f"{_title(option)}{_default(option, required[field].default)}", f": {text}", "")


def _title(option: Option) -> str:
    choice, metavar = option.mark(Choice), option.mark(Metavar)
    value = metavar.text if metavar else f"{{{','.join(choice.known)}}}" if choice else option.values.metavar
    flag = option.name.upper() if _is_positional(option) else flag_of(option.name)
    if option.values.kind is bool:
        return f"`{flag}`, `{flag_of('no_' + option.name)}`"
    words = "" if _is_positional(option) else (f" {value} ..." if option.values.many else f" {value}")
    return f"`{flag}{words}`"


def _is_positional(option: Option) -> bool:
    return any("Positional" in str(mark).title() for mark in option.values.marks)


def _default(option: Option, default: Any) -> str:
    if option.required:
        return " (required)"
    if default in (None, ()):
        unset = option.mark(Unset)
        return f" (default: {unset.meaning if unset else 'by the recipe'})"
    values = default if isinstance(default, tuple) else (default,)
    return f" (default: `{' '.join(map(format_argument, values))}`)"


def _argument_options(flag: str, registry: Any) -> Iterator[str]:
    yield from (f"## {flag}", "")
    for name, kind in sorted(registry.items()):
        arguments = own_arguments(kind)
        if not arguments:
            continue
        yield from (f"### {name}", "")
        for one in arguments.values():
            metavar = one.values.metavar + ("|none" if one.values.optional else "")
            text = one.text.replace("*", r"\*").replace("|", r"\|").replace("<", r"\<")
            yield from (f"`{one.name}={metavar}` (default: `{format_argument(one.default)}`)", f": {text}", "")
