"""Locks between processes: who is refused, who waits, and what does not break them."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import pyengm
from pyengm.errors import ConfigError, StorageError
from pyengm.utils.locks import file_lock

HOLD = """
import sys, time
from pathlib import Path
from pyengm.utils.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    environment = os.environ | {"PYTHONPATH": str(Path(pyengm.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_at_once_and_learns_the_first(tmp_path, holder):
    for _ in range(2):  # the refused one leaves the name of the holder in place
        with (
            pytest.raises(ConfigError, match=rf"written to by another process \(process {holder.pid}\)"),
            file_lock(tmp_path, wait=False),
        ):
            pytest.fail("entered")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_free(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    with file_lock(tmp_path, wait=False):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}"


def test_waiting(tmp_path, holder):
    entered = threading.Event()

    def enter():
        with file_lock(tmp_path):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(timeout=0.3)
    holder.kill()
    assert entered.wait(timeout=30)
    thread.join()


def test_threads_of_one_process_wait_for_each_other(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(10):
            with file_lock(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40


def test_a_process_refuses_itself(tmp_path):
    message = f"process {os.getpid()}"
    with file_lock(tmp_path), pytest.raises(ConfigError, match=message), file_lock(tmp_path, wait=False):
        pytest.fail("entered")
    with file_lock(tmp_path, wait=False):
        pass


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number, wait):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = []
    with file_lock(tmp_path, wait=wait), file_lock(tmp_path, wait=wait):
        entered.append(True)
    assert entered
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_does_not_break_the_lock(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with file_lock(tmp_path), pytest.raises(ConfigError), file_lock(tmp_path, wait=False):
            pytest.fail("entered")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_an_error_inside_releases_the_lock(tmp_path):
    with suppress(KeyError), file_lock(tmp_path / "new" / "folder"):
        raise KeyError
    with file_lock(tmp_path / "new" / "folder", wait=False):
        pass


def test_nowhere_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot make the folder"), file_lock(tmp_path / "file" / "folder"):
        pytest.fail("entered")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*/\.lock: .*Permission denied"), file_lock(tmp_path):
        pytest.fail("entered")
