"""The training methods by name."""

from typing import TypeVar

from pyengm.errors import ConfigError
from pyengm.methods.base import Method

METHODS: dict[str, type[Method]] = {}
"""Every registered method by the name in its record, which is that of `--method`."""

AnyMethod = TypeVar("AnyMethod", bound=type[Method])


def register_method(kind: AnyMethod) -> AnyMethod:
    """Adds a method to `METHODS`, under the name in its record; a class decorator.

    Modules of `pyengm.methods` are found by themselves. A method of one's own, anywhere else, is known once its module
    has been imported.

    Args:
        kind: A subclass of `Method` with an `info` of its own.

    Returns:
        The class.

    Raises:
        ConfigError: The class has no record of its own with a name, or another class has that name.
    """
    if "info" not in vars(kind) or not kind.info.name:
        raise ConfigError(f"{kind.__name__} has no name; expected a class attribute info = MethodInfo(name=...)")
    known = METHODS.setdefault(kind.info.name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(
            f"the name {kind.info.name!r} of {kind.__name__} is taken by {known.__name__}; give it another one"
        )
    METHODS[kind.info.name] = kind
    return kind
