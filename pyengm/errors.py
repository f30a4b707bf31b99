"""The exceptions of pyengm."""


class PyengmError(Exception):
    """Base class of every error that pyengm raises on purpose."""


class ConfigError(PyengmError, ValueError):
    """An option or a combination of options that cannot work."""


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
