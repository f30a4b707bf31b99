"""Options of an optimiser that can be changed at any time: attributes that are kept in the parameter groups."""

import inspect
from collections.abc import Callable
from typing import Any

from pyengm.errors import ConfigError


class Hyperparameter:
    """An attribute of an optimiser, kept in every parameter group, so that state_dict has it; setting it sets all.

    Args:
        expected: What a value must be, in words.
        allowed: Whether a value is allowed.
        joint: Whether the value is one for all groups; other hyperparameters may differ by group, and the attribute
            then reads that of the first group.

    Raises:
        ConfigError: On setting, for a value that is not allowed.
    """

    def __init__(self, expected: str, allowed: Callable[[Any], bool], *, joint: bool = True):
        self.expected, self.allowed, self.joint = expected, allowed, joint

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        self.check(value)
        optimizer.defaults[self.name] = value
        for group in optimizer.param_groups:
            group[self.name] = value

    def check(self, value: Any) -> None:
        """Raises ConfigError for a value that is not allowed."""
        if not self.allowed(value):
            raise ConfigError(f"{self.name} is {value!r}; expected {self.expected}")


def hyperparameters_of(kind: type) -> dict[str, Hyperparameter]:
    """The hyperparameters of a class and of its base classes, by name."""
    return {
        name: hyperparameter
        for c in reversed(kind.__mro__)
        for name, hyperparameter in vars(c).items()
        if isinstance(hyperparameter, Hyperparameter)
    }


def defaults_of(kind: type) -> dict[str, Any]:
    """The default values of the hyperparameters of a class, by name."""
    arguments = inspect.signature(kind).parameters
    return {name: arguments[name].default for name in hyperparameters_of(kind) if name in arguments}
