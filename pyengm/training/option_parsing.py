"""Options given as words: name=value for the arguments of a class, numbers as fractions."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyengm.errors import ConfigError
from pyengm.training.option_types import parse_number
from pyengm.utils.did_you_mean import did_you_mean

# What the trainer gives by options of its own.
OWN = ("self", "params", "eps", "norm", "epochs", "lr", "momentum", "weight_decay", "buffers", "seed")
BY_NAME = ("step_size", "steps", "bn", "alpha", "tau", "max_norm", "norms")  # have an option of their own


def defaults_for(kind: type) -> dict[str, Any]:
    """The arguments of a class that a run may set, with their defaults; also those that it hands on to a base."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        if owner is object or "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        handed_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {p.name: p.default for p in parameters if p.name not in OWN and p.kind is not p.VAR_KEYWORD}
        found = named | found
        if not handed_on:
            break
    return found


def takes(kind: type, argument: str) -> bool:
    """Whether a class has that argument."""
    return argument in inspect.signature(kind).parameters


def parse_options(words: Sequence[str], kind: Callable, option: str) -> dict[str, Any]:
    """Words "name=value" as keyword arguments of a class. Raises ConfigError for names and values that do not fit."""
    known = {name: default for name, default in defaults_for(kind).items() if name not in BY_NAME}
    annotations = {p.name: str(p.annotation) for p in inspect.signature(kind).parameters.values()}
    parsed = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"{option} has {word!r}; expected NAME=VALUE with a name of {kind.__name__}: "
                f"{', '.join(known) or 'it has none'}{did_you_mean(name, known)}"
            )
        value = _value(text)
        if isinstance(known[name], torch.dtype):
            value = getattr(torch, text, None)
            if not (isinstance(value, torch.dtype) and value.is_floating_point):
                raise ConfigError(f"{option} has {word!r}; expected a floating-point type of torch, such as float16")
        parsed[name] = value
        if not _fits(value, known[name], annotations.get(name)):
            raise ConfigError(f"{option} has {word!r}; expected a value like the default, {name}={known[name]}")
    return parsed


def merge_options(words: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """The words of both; where both name an option, that of `over`."""
    named = {word.partition("=")[0]: word for word in (*words, *over)}
    return tuple(named.values())


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return parse_number(text)
    except (ValueError, ZeroDivisionError):
        return text  # a name; the class checks it


def _fits(value: Any, default: Any, annotation: str | None) -> bool:
    """Whether a value is of the default's type, or of that which a default of None stands for."""
    if isinstance(default, (bool, torch.dtype)) or default is inspect.Parameter.empty:
        return isinstance(value, type(default)) or default is inspect.Parameter.empty
    if value is None:
        return default is None
    if isinstance(default, int) or (default is None and "int" in str(annotation) and "float" not in str(annotation)):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float) or (default is None and "float" in str(annotation)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return True
