"""Loggers by name: those of the library, and MODULE:FACTORY for those of users."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pyengm.errors import ConfigError
from pyengm.training.loggers.base import Logger, Row
from pyengm.utils.did_you_mean import did_you_mean

LOGGERS = {"tensorboard": "pyengm.training.loggers.tensorboard:TensorBoard"}  # imported on request
INSTALL = {"tensorboard": 'pip install "pyengm[tensorboard]"'}
Factory = Callable[[Path, dict[str, Any]], object]  # `build_logger` checks that it returns a Logger


def check_logger_name(name: str) -> None:
    """Raises ConfigError for what is neither a known name nor MODULE:FACTORY."""
    module, colon, attribute = name.partition(":")
    if name not in LOGGERS and not (module and colon and attribute):
        raise ConfigError(
            f"unknown logger {name!r}; known: {', '.join(LOGGERS)}{did_you_mean(name, LOGGERS)}, "
            "and MODULE:FACTORY for one of your own"
        )


def logger_factory(name: str) -> Factory:
    """Finds the factory of a logger.

    Args:
        name: A key of `LOGGERS`, or MODULE:FACTORY.

    Returns:
        The function or class that makes the logger from the run folder and the options.

    Raises:
        ConfigError: For an unknown name, a module that cannot be imported, and one without that factory.
    """
    check_logger_name(name)
    module, _, attribute = LOGGERS.get(name, name).partition(":")
    try:
        found = import_module(module)
    except Exception as error:  # any error of the user's module
        if name in INSTALL:
            raise ConfigError(f"the logger {name} is not installed: {INSTALL[name]} ({error})") from error
        raise ConfigError(
            f"cannot import {module!r} for the logger {name!r}: {type(error).__name__}: {error}; "
            "the folder that holds the module must be in PYTHONPATH"
        ) from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        raise ConfigError(f"{module} has no function or class {attribute!r}{did_you_mean(attribute, vars(found))}")
    return factory


def build_logger(name: str, folder: Path, config: Row) -> Logger:
    """Builds a logger by its name.

    Args:
        name: As for `logger_factory`.
        folder: The run folder.
        config: The options of the run.

    Raises:
        ConfigError: As for `logger_factory`, and where the factory returns no Logger.
    """
    logger = logger_factory(name)(folder, dict(config))
    if not isinstance(logger, Logger):
        raise ConfigError(f"{name} returned a {type(logger).__name__}; expected a pyengm.training.Logger")
    return logger
