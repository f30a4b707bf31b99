"""Functions and classes of the user by name, as in "my_module:make_model"."""

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from importlib import import_module
from types import ModuleType
from typing import Any

from pyengm.errors import ConfigError, PyengmError
from pyengm.utils.did_you_mean import did_you_mean

_NAME = r"[^\W\d]\w*"
_PATH = rf"{_NAME}(?:\.{_NAME})*"
_SPEC = re.compile(rf"({_PATH}):({_PATH})")


def is_object_spec(text: object) -> bool:
    """Whether a text has the form MODULE:NAME, such as my_package.models:make_model."""
    return isinstance(text, str) and _SPEC.fullmatch(text) is not None


def import_object(spec: str, option: str) -> Any:
    """Imports what a text names. The working directory is importable, as for `python -m`.

    Args:
        spec: MODULE:NAME.
        option: The option that has the text, such as "--model", for messages.

    Returns:
        The object: a function, a class, or anything else that can be called.

    Raises:
        ConfigError: The text has another form, the module cannot be imported, or it has no such function.
    """
    form = _SPEC.fullmatch(spec)
    if form is None:
        raise ConfigError(f"{option}: expected MODULE:NAME, such as my_module:make_model, got {spec!r}")
    module_name, path = form.groups()
    module = _import_module(module_name, option)
    try:
        found = reduce(getattr, path.split("."), module)
    except AttributeError:
        known = [name for name in vars(module) if not name.startswith("_")]
        hint = did_you_mean(path, known)
        raise ConfigError(f"{option}: {_where(module)} has no function or class {path!r}{hint}") from None
    if not callable(found):
        raise ConfigError(
            f"{option}: expected a function or class, got {path} of type {type(found).__name__} in {_where(module)}"
        )
    return found


def call_object(function: Callable[..., Any], spec: str, option: str, offered: Mapping[str, Any]) -> Any:
    """Calls a function of the user with those of the offered arguments that it takes.

    Args:
        function: What `import_object` returned.
        spec: The text that named it, for messages.
        option: The option that has the text, for messages.
        offered: Keyword arguments; a function that takes none of them is called without arguments.

    Returns:
        What it returns.

    Raises:
        ConfigError: It needs arguments that are not offered, or it raised an error; errors of pyengm pass.
    """
    check_arguments(function, spec, option, offered)
    given = _accepted(function, offered)
    try:
        return function(**given)
    except PyengmError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{option}: {spec} failed with {describe_error(error)}") from error


def check_arguments(function: Callable[..., Any], spec: str, option: str, offered: Collection[str]) -> None:
    """Checks that a function of the user can be called with arguments of these names, or with some of them.

    Args:
        function: What `import_object` returned.
        spec: The text that named it, for messages.
        option: The option that has the text, for messages.
        offered: The names.

    Raises:
        ConfigError: It needs other arguments.
    """
    try:
        inspect.signature(function).bind(**_accepted(function, dict.fromkeys(offered)))
    except TypeError as error:
        names = ", ".join(offered) or "none"
        raise ConfigError(f"{option}: {spec} has {error}; the arguments that it can have: {names}") from None
    except ValueError:
        pass  # a builtin without a signature


def check_trusted(named: Mapping[str, object], source: object, trusted: bool) -> None:
    """Checks that code which a file of settings names may be run.

    Args:
        named: The entries of the file that may name code, such as {"model": "my_module:make_model"}.
        source: The file, for the message.
        trusted: Whether the user has said that the code may be run (--trust-config).

    Raises:
        ConfigError: An entry names code, and that was not said.
    """
    code = [f"{key}: {value}" for key, value in named.items() if is_object_spec(value)]
    if code and not trusted:
        raise ConfigError(
            f"{source} names code that would be run ({', '.join(code)}): read that code, and give --trust-config "
            "(in Python trust_config=True) if you trust it"
        )


def _import_module(name: str, option: str) -> ModuleType:
    directory = os.getcwd()
    if not {"", directory} & set(sys.path):
        sys.path.insert(0, directory)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(f"{option}: cannot import {name}: {describe_error(error)}") from error
        raise ConfigError(
            f"{option}: there is no module {error.name!r}; it must be in the working directory, {directory}, be "
            "installed, or be in a folder of PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # any error of the user's module
        raise ConfigError(f"{option}: cannot import {name}: {describe_error(error)}") from error


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in names}


def describe_error(error: BaseException) -> str:
    """Type, message and place of an error of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _where(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__
