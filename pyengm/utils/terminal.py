"""Output on the terminal, of process 0 alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType

from pyengm.utils.distributed import rank

console = Console()


def log(message: RenderableType) -> None:
    """Prints a line as it is, or a table of rich; processes other than 0 print nothing."""
    if rank() == 0:
        console.print(message, highlight=False, markup=False, soft_wrap=isinstance(message, str))


@contextmanager
def log_warnings() -> Iterator[None]:
    """A context in which warnings are printed as plain lines by `log`, each text once."""
    with warnings.catch_warnings():
        printed: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in printed:
                printed.add(str(message))
                log(f"warning: {message}")

        warnings.showwarning = show
        yield
