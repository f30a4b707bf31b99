"""The exceptions of pyengm, each with the exit status of a command that it ends."""

from typing import ClassVar


class PyengmError(Exception):
    """Base class of every error that pyengm raises on purpose.

    Attributes:
        exit_status: The exit status of a command that ends with this error.
    """

    exit_status: ClassVar[int] = 1


class ConfigError(PyengmError, ValueError):
    """An option or a combination of options that cannot work."""


class UsageError(ConfigError):
    """Words of a command line that do not parse."""

    exit_status = 2


class DataError(PyengmError, ValueError):
    """Data that are missing, malformed or out of range."""


class ModelError(PyengmError, ValueError):
    """A model that does not map images to logits."""


class CheckpointError(PyengmError, RuntimeError):
    """A checkpoint that is missing, damaged or of something else."""


class StorageError(PyengmError, OSError):
    """A disk that is full or cannot be written to; existing files stay whole."""


class NonFiniteError(PyengmError, ArithmeticError):
    """A loss, logit or gradient norm that is NaN or infinite."""


class UnsupportedOperationError(PyengmError):
    """Per-example gradient norms of an operation without a rule; the message names the node and the parameter."""


class Interrupted(PyengmError):
    """A run that was stopped by a signal; its state is saved."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again
