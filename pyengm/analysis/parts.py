"""The parts of an analysis: one after another, and kept on disk where an interrupted one is to resume."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from pyengm.utils.io import atomic_write, make_dirs

Arrays = dict[str, np.ndarray]


class Parts:
    """Computes the parts of an analysis, each a function of its number and of the parts before it.

    Args:
        on_part: Called after each part, with the stage, the number of parts of the stage that are done, and their
            total number. A stage is one call of `run`.
    """

    def __init__(self, on_part: Callable[[int, int, int], None] = lambda stage, done, total: None):
        self.on_part, self.stages = on_part, 0

    def run(self, count: int, compute: Callable[[int], Arrays]) -> Iterator[Arrays]:
        """Yields compute(0), ..., compute(count - 1); the caller may stop before the last.

        Args:
            count: The number of parts.
            compute: Returns the arrays of a part. It changes nothing that a later part depends on: the caller does
                that with the arrays that are yielded, which are the same where they come from the disk.
        """
        stage, self.stages = self.stages, self.stages + 1
        for number in range(count):
            arrays = self.part(stage, number, compute)
            self.on_part(stage, number + 1, count)
            yield arrays

    def part(self, stage: int, number: int, compute: Callable[[int], Arrays]) -> Arrays:
        """The arrays of one part."""
        return compute(number)


class SavedParts(Parts):
    """Parts that are kept in a folder, from which the same analysis resumes.

    Args:
        folder: Of this analysis alone: what its parts depend on decides the name of the folder.
        on_part: As for `Parts`.
    """

    def __init__(self, folder: Path, on_part: Callable[[int, int, int], None] = lambda stage, done, total: None):
        super().__init__(on_part)
        self.folder = folder

    def part(self, stage: int, number: int, compute: Callable[[int], Arrays]) -> Arrays:
        """The arrays of one part, from the folder where they are there."""
        path = self.folder / f"part-{stage:02}-{number:05}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        arrays = compute(number)
        make_dirs(self.folder)
        content = BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        atomic_write(path, lambda temporary: temporary.write_bytes(content.getvalue()))
        return arrays
