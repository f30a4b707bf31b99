"""The states that a run can go on from: folders that are whole or not there, with a digest of each file.

checkpoints/epoch-0007-batch-000000/    before epoch 7 (counted from 0)
    state.pt            what all processes share
    process-0-of-2.pt   what each has for itself: its share of the stores, its random generators
    manifest.json       the SHA-256 of these files
"""

import hashlib
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
class Saved:
    """What a checkpoint holds. shared: of all processes. parts: of each process that wrote it, in their order."""

    shared: dict[str, Any]
    parts: list[dict[str, Any]]


class Checkpoints:
    """The checkpoints in a folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def all(self) -> list[Path]:
        """Those that are whole, the oldest first."""
        return sorted((path.parent for path in self.folder.glob(f"epoch-*/{MANIFEST}")), key=_place)

    def save(self, epoch: int, batch: int, shared: dict[str, Any], part: dict[str, Any]) -> None:
        """Writes a checkpoint, then removes those beyond the newest `keep`.

        Where several processes run, all call this: each writes its part, and process 0 what they share. A reader sees
        the whole checkpoint or none. Raises StorageError where the disk is full or cannot be written to.
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
            names = {name: digest for _, some in everything for name, digest in some.items()}
            problem = _attempt(self._publish, temporary, final, names)
        _raise_first(all_gather_object(problem), temporary)

    def load(self, map_location: torch.device) -> Saved | None:
        """The newest checkpoint that is whole, None where there is none.

        Warns of each that is damaged and takes the one before. Raises CheckpointError where all are damaged.
        """
        found = on_rank0(self._newest)
        return None if found is None else _read(found, map_location)

    def _newest(self) -> Path | None:
        paths, damage = self.all(), []
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
        for name in digests:  # of other machines too: on a disk that they do not share, there would be no checkpoint
            if not (temporary / name).exists():
                raise OSError(f"{name} was written by another process, but is not here: the disk must be shared")
        text = json.dumps({"sha256": digests}, indent=2) + "\n"
        with open(temporary / MANIFEST, "w") as file:
            file.write(text)
            _flush(file)
        if final.exists():  # a damaged one that the run came back to
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush_folder(self.folder)
        later = [path for path in self.all() if _place(path) > _place(final)]  # damaged, as the run went back
        until_now = [path for path in self.all() if path not in later]
        for path in later + until_now[: -self.keep]:
            (path / MANIFEST).unlink()  # from now on it is none
        for path in self.folder.glob("epoch-*"):
            if not (path / MANIFEST).exists():
                shutil.rmtree(path)


def _place(path: Path) -> tuple[int, int]:
    """Epoch and batch."""
    _, epoch, _, batch = path.name.split("-")
    return int(epoch), int(batch)


def find_corruption(path: Path) -> str | None:
    """What is wrong with the checkpoint in the folder `path`, None if its files are those that were written."""
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


def _read(path: Path, map_location: torch.device) -> Saved:
    """Of the parts, tensors are mapped from the file, as a process needs only some of them."""
    parts = sorted(path.glob("process-*.pt"), key=lambda part: int(part.name.split("-")[1]))
    try:
        return Saved(
            torch.load(path / STATE, map_location=map_location, weights_only=True),
            [torch.load(part, map_location="cpu", weights_only=True, mmap=True) for part in parts],
        )
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} was not written by this version of pyengm, or of torch: {error}") from error


class _Digesting:
    """A file being written, with the SHA-256 of what went in."""

    def __init__(self, file: Any):
        self.file, self.sha = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, thing: dict[str, Any], digests: dict[str, str]) -> None:
    with open(path, "wb") as file:
        digesting = _Digesting(file)
        torch.save(thing, digesting)
        _flush(file)
    digests[path.name] = digesting.sha.hexdigest()


def _make_empty(folder: Path) -> None:
    for left in folder.parent.glob(".epoch-*.tmp"):  # by a crash
        shutil.rmtree(left)
    folder.mkdir(parents=True)


def _attempt(function: Any, *arguments: Any) -> str | None:
    """What went wrong on the disk, None if nothing did."""
    try:
        function(*arguments)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of some
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
    digest = hashlib.sha256()  # hashlib.file_digest is not in Python 3.10
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
