"""Loggers by name: those of the library, and MODULE:NAME for those of users."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pyengm.errors import ConfigError
from pyengm.training.loggers.base import Logger, Row
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.import_object import call_object, check_arguments, import_object, is_object_spec

LOGGERS = {  # imported on request
    "tensorboard": "pyengm.training.loggers.tensorboard:TensorBoard",
    "wandb": "pyengm.training.loggers.wandb_runs:WandB",
    "mlflow": "pyengm.training.loggers.mlflow_runs:MLflow",
}
OPTION = "--loggers"
ARGUMENTS = ("folder", "config")  # that a factory may take
Factory = Callable[..., object]  # `build_logger` checks that it returns a Logger


def logger_name(name: str) -> str:
    """The name of a logger as `LOGGERS` has it, in upper or lower case.

    Raises:
        ConfigError: The name is unknown, and has not the form MODULE:NAME.
    """
    if name.lower() in LOGGERS:
        return name.lower()
    if not is_object_spec(name):
        raise ConfigError(
            f"unknown logger {name!r}; known: {', '.join(LOGGERS)}{did_you_mean(name, LOGGERS)}, "
            "and MODULE:NAME for one of your own"
        )
    return name


def logger_factory(name: str) -> Factory:
    """Finds the factory of a logger.

    Args:
        name: A key of `LOGGERS`, or MODULE:NAME.

    Returns:
        The function or class that makes the logger. It may take `folder`, the run folder, and `config`, the options.

    Raises:
        ConfigError: The name is unknown, the module cannot be imported, or it has no such factory; the factory has
            other arguments without defaults.
    """
    name = logger_name(name)
    if name not in LOGGERS:
        factory = import_object(name, OPTION)
        if isinstance(factory, type) and not issubclass(factory, Logger):
            raise ConfigError(f"{OPTION}: {name} is a class of another kind; expected a pyengm.training.Logger")
        check_arguments(factory, name, OPTION, ARGUMENTS)
        return factory
    module, _, attribute = LOGGERS[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f'the logger {name} is not installed: pip install "pyengm[{name}]" ({error})') from error


def build_logger(name: str, folder: Path, config: Row) -> Logger:
    """Builds a logger by its name.

    Args:
        name: As for `logger_factory`.
        folder: The run folder.
        config: The options of the run.

    Raises:
        ConfigError: As for `logger_factory`, and where the factory fails or returns no Logger.
    """
    offered: dict[str, Any] = {"folder": folder, "config": dict(config)}
    logger = call_object(logger_factory(name), name, OPTION, offered)
    if not isinstance(logger, Logger):
        raise ConfigError(f"{name} returned a {type(logger).__name__}; expected a pyengm.training.Logger")
    return logger
