"""The formats of the files that other programs read, such as "pyengm results 1".

The number grows when a key changes its meaning or is taken away; new keys leave it as it is.
"""

from pathlib import Path
from typing import Any

from pyengm.errors import DataError

RESULTS_FORMAT = "pyengm results 1"
"""results.json, the files in evaluations/, and those of `pyengm evaluate --out`."""

RUN_FORMAT = "pyengm run 1"
"""metrics.jsonl, timing.jsonl and environment.json, which names it."""


def check_format(found: Any, known: str, path: Path) -> None:
    """Checks the format of a file.

    Args:
        found: The format that the file names; None for a file from before formats were written, which has the first.
        known: The one that is read.
        path: The file, for the error.

    Raises:
        DataError: The file has another format.
    """
    if found not in (None, known):
        raise DataError(
            f"{path} has the format {found!r}, and this pyengm reads {known!r}: use the version that wrote it"
        )
