"""Failed allocations as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyengm.errors import ConfigError

MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")  # of torch's allocators


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """A context in which a failed allocation is a ConfigError.

    Args:
        advice: what to do, for the message.

    Raises:
        ConfigError: the memory of the device or of the machine is not enough.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigError(f"the memory is not enough ({_first_line(error)}): {advice}") from error
    except RuntimeError as error:
        if not any(message in str(error) for message in MESSAGES):
            raise
        raise ConfigError(f"the memory is not enough ({_first_line(error)}): {advice}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
