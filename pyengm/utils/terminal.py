"""What a run says on the terminal; of several processes only the first speaks."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType

from pyengm.utils.distributed import rank

console = Console()


def log(what: RenderableType) -> None:
    """Prints a line as it is, or a table."""
    if rank() == 0:
        console.print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings as plain lines, each text once."""
    with warnings.catch_warnings():
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                log(f"warning: {message}")

        warnings.showwarning = show
        yield
