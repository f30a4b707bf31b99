"""Output on the terminal, of process 0 alone."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console, RenderableType

from pyengm.utils.distributed import rank


class TerminalConsole(Console):
    """A console that takes the end of the reader of a pipe (`| head`) as Ctrl-C: the run saves its state and stops."""

    def on_broken_pipe(self) -> None:
        """Called where a line cannot be written since nobody reads it."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that later output, of Python too, succeeds
        signal.raise_signal(signal.SIGINT)


console: Console = TerminalConsole()
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def is_quiet() -> bool:
    """Whether warnings, errors and results alone are printed."""
    return _quiet.get()


@contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """A context in which, if `quiet`, `log` and progress bars print nothing."""
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def log(message: RenderableType, *, always: bool = False) -> None:
    """Prints a line as it is, or a table of rich; processes other than 0 print nothing.

    Args:
        message: the line or table.
        always: whether it is a result or a warning, which `quieted` does not silence.
    """
    if rank() == 0 and (always or not is_quiet()):
        console.print(message, highlight=False, markup=False, soft_wrap=isinstance(message, str))


@contextmanager
def log_warnings() -> Iterator[None]:
    """A context in which warnings are printed as plain lines by `log`, each text once."""
    with warnings.catch_warnings():
        printed: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in printed:
                printed.add(str(message))
                log(f"warning: {message}", always=True)

        warnings.showwarning = show
        yield
