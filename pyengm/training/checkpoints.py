"""Checkpoints that a run can resume from: folders that exist whole or not at all, with a digest of each file.

checkpoints/epoch-0007-batch-000000/    before epoch 7 (counted from 0)
    state.pt            the state that all processes share
    process-0-of-2.pt   the state of each process: its share of the per-example buffers, its random generators
    manifest.json       the SHA-256 of these files
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyengm.errors import CheckpointError, StorageError
from pyengm.utils.distributed import all_gather_object, on_rank0, rank, world_size

MANIFEST = "manifest.json"
STATE = "state.pt"


@dataclass(frozen=True)
class SavedState:
    """The content of a checkpoint.

    Attributes:
        shared: The state that all processes share.
        parts: The state of each process that wrote it, by rank.
    """

    shared: dict[str, Any]
    parts: list[dict[str, Any]]


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: Holds a folder for each checkpoint.
        keep: Number of checkpoints to keep, the newest ones.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def complete(self) -> list[Path]:
        """The folders of the complete checkpoints, the oldest first."""
        return sorted((path.parent for path in self.folder.glob(f"epoch-*/{MANIFEST}")), key=_position)

    def save(self, epoch: int, batch: int, shared: dict[str, Any], part: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes all but the newest `keep`.

        All processes call this: each writes its part, and process 0 the shared state. A reader sees the whole
        checkpoint or none.

        Args:
            epoch: The next epoch, counted from 0.
            batch: The next batch of that epoch.
            shared: The state that all processes share, of types that torch.load(weights_only=True) accepts.
            part: The state of this process, of such types.

        Raises:
            StorageError: Where the disk is full or cannot be written to.
        """
        final = self.folder / f"epoch-{epoch:04d}-batch-{batch:06d}"
        temporary = self.folder / f".{final.name}.tmp"
        problem = None
        if rank() == 0:
            problem = _attempt(_make_empty, temporary)
        _raise_first(all_gather_object(problem), temporary)
        digests: dict[str, str] = {}
        problem = _attempt(_write, temporary / f"process-{rank()}-of-{world_size()}.pt", part, digests)
        if rank() == 0 and problem is None:
            problem = _attempt(_write, temporary / STATE, shared, digests)
        everything = all_gather_object((problem, digests))
        _raise_first([found for found, _ in everything], temporary)
        problem = None
        if rank() == 0:
            merged = {name: digest for _, some in everything for name, digest in some.items()}
            problem = _attempt(self._publish, temporary, final, merged)
        _raise_first(all_gather_object(problem), temporary)

    def load(self, map_location: torch.device) -> SavedState | None:
        """Reads the newest checkpoint without damage; warns of every damaged one that is newer.

        Args:
            map_location: The device for the shared state; the parts stay on the CPU.

        Returns:
            The state, None where there is no checkpoint.

        Raises:
            CheckpointError: Where all checkpoints are damaged.
        """
        found = on_rank0(self._newest)
        return None if found is None else _read(found, map_location)

    def _newest(self) -> Path | None:
        paths, damage = self.complete(), []
        for path in reversed(paths):
            problem = find_corruption(path)
            if problem is None:
                return path
            damage.append(problem)
            warnings.warn(f"{problem}; going back to the checkpoint before it", stacklevel=4)
        if not damage:
            return None
        raise CheckpointError(
            f"no checkpoint of {self.folder.parent} is whole ({'; '.join(damage)}); the weights in "
            f"{self.folder.parent / 'last.safetensors'} may be"
        )

    def _publish(self, temporary: Path, final: Path, digests: dict[str, str]) -> None:
        for name in digests:  # without a shared disk, those of other machines are missing
            if not (temporary / name).exists():
                raise OSError(f"{name} was written by another process, but is not here: the disk must be shared")
        text = json.dumps({"sha256": digests}, indent=2) + "\n"
        with open(temporary / MANIFEST, "w") as file:
            file.write(text)
            _flush(file)
        if final.exists():  # a damaged one, as the run resumed before it
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush_folder(self.folder)
        later = [
            path for path in self.complete() if _position(path) > _position(final)
        ]  # damaged, as the run resumed before them
        until_now = [path for path in self.complete() if path not in later]
        for path in later + until_now[: -self.keep]:
            (path / MANIFEST).unlink()  # without its manifest it is no checkpoint
        for path in self.folder.glob("epoch-*"):
            if not (path / MANIFEST).exists():
                shutil.rmtree(path)


def _position(path: Path) -> tuple[int, int]:
    """Epoch and batch."""
    _, epoch, _, batch = path.name.split("-")
    return int(epoch), int(batch)


def find_corruption(path: Path) -> str | None:
    """Compares the files of a checkpoint with their digests.

    Args:
        path: The folder of the checkpoint.

    Returns:
        What is wrong, None where nothing is.
    """
    try:
        digests = json.loads((path / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path / MANIFEST} is damaged ({error})"
    for name, digest in digests.items():
        try:
            with open(path / name, "rb") as file:
                found = _sha256(file)
        except OSError as error:
            return f"{path / name} cannot be read ({error})"
        if found != digest:
            return f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def _read(path: Path, map_location: torch.device) -> SavedState:
    """Tensors of the parts are memory-mapped, as a process needs only some of them."""
    parts = sorted(path.glob("process-*.pt"), key=lambda part: int(part.name.split("-")[1]))
    try:
        return SavedState(
            torch.load(path / STATE, map_location=map_location, weights_only=True),
            [torch.load(part, map_location="cpu", weights_only=True, mmap=True) for part in parts],
        )
    except (
        RuntimeError,
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # torch's message proposes unsafe loading
        raise CheckpointError(
            f"{path} was not written by this version of pyengm, or of torch; the weights in "
            f"{path.parent.parent / 'last.safetensors'} may be read"
        ) from error


class _DigestingFile(io.BufferedWriter):
    """A file that computes the SHA-256 of what is written to it."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "wb"))
        self.sha = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha.update(data)
        return super().write(data)


def _write(path: Path, state: dict[str, Any], digests: dict[str, str]) -> None:
    with _DigestingFile(path) as file:
        torch.save(state, file)
        _flush(file)
    digests[path.name] = file.sha.hexdigest()


def _make_empty(folder: Path) -> None:
    for incomplete in folder.parent.glob(".epoch-*.tmp"):  # of a crash
        shutil.rmtree(incomplete)
    folder.mkdir(parents=True)


def _attempt(function: Any, *arguments: Any) -> str | None:
    """Calls the function; returns what went wrong on the disk, None where nothing did."""
    try:
        function(*arguments)
    except (OSError, RuntimeError) as error:  # torch.save raises some as RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        return str(cause)
    return None


def _raise_first(problems: list[str | None], temporary: Path) -> None:
    """Raises StorageError in all processes where one of them had a problem."""
    for problem in problems:
        if problem is not None:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(f"cannot write a checkpoint to {temporary.parent}: {problem}")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
