"""Files that are written whole or not at all, folders, and digests."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from pyengm.errors import StorageError


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file under a temporary name and moves it into place: a crash leaves the old file or the new one.

    Args:
        path: the file.
        write: writes the new content to the path that it receives.

    Raises:
        StorageError: the disk is full or cannot be written to; the old file is whole then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # that of any new file, where `write` makes one that only its owner may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file of numpy (.npz), an array by each name, whole or not at all; equal arrays give equal files.

    Args:
        path: the file; its folder is made.
        arrays: the arrays by name.

    Raises:
        StorageError: the disk is full or cannot be written to; the old file is whole then.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a path, numpy would add a suffix
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    make_dirs(path.parent)
    atomic_write(path, write)


def format_size(size: float) -> str:
    """A number of bytes as people write it, such as 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def make_dirs(path: Path) -> None:
    """Makes a folder and its parents where they do not exist.

    Raises:
        StorageError: that is not possible.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error}") from error


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256, in hexadecimal digits, of the names and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
