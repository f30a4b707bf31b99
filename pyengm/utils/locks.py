"""Locks between processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyengm.errors import ConfigError, StorageError
from pyengm.utils.io import make_dirs


@contextmanager
def file_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """A context in which no other process is in the same context for the same folder.

    The file .lock in the folder names the process that holds the lock. The lock of a killed process is free. Nothing
    is locked on a file system without locks, and a full disk does not break a lock.

    Args:
        folder: made if it does not exist.
        wait: wait for another process to release the lock; False raises an error at once.

    Raises:
        ConfigError: another process holds the lock, and wait is False; the message names that process.
        StorageError: the folder or the lock file cannot be made.
    """
    path = Path(folder) / ".lock"
    make_dirs(path.parent)
    try:
        path.touch()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    # on_acquired also keeps filelock from its lock without flock, which a killed process on another machine would hold
    lock = FileLock(path, on_acquired=_write_holder, preserve_lock_file=True)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise ConfigError(
            f"{folder} is being written to by another process ({path.read_text()[:100]}); wait for it or end it"
        ) from error
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


def _write_holder(lock: int) -> None:
    with suppress(OSError):  # a full disk does not keep the lock from holding
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()}".encode())
