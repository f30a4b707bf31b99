"""Several processes on one run: joining those that torchrun has started, and starting them for `--nproc`."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from pyengm.errors import ConfigError
from pyengm.training.signals import STATUS

LAUNCHER = "PYENGM_LAUNCHER"  # in the environment: a pipe whose other end the launcher holds
GRACE = 60  # seconds that processes get to stop after another one failed
TIMEOUT = timedelta(minutes=30)  # for one process to wait for another: the slowest part is an attack on its images


def started() -> bool:
    """Whether torchrun, or `launch`, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_zero() -> bool:
    """Whether this is process 0, also before the group is joined."""
    return os.environ.get("RANK", "0") == "0" or not started()


def began_by_this_job(job: Path) -> bool:
    """Whether the file `job` names the torchrun job that this process belongs to, which restarts what has failed."""
    name = job_name()
    return name is not None and job.is_file() and job.read_text().strip() == name


def job_name() -> str | None:
    """The identity of the torchrun job (--rdzv-id) if it has one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


@contextmanager
def group() -> Iterator[None]:
    """While it is entered, this process is one of the group that it was started for; alone it needs none.

    Collectives run on NCCL between GPUs and on gloo between CPUs.
    """
    if not started():
        yield
        return
    if LAUNCHER in os.environ:
        threading.Thread(target=_stop_with_launcher, args=(int(os.environ[LAUNCHER]),), daemon=True).start()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine, where `device` names none in particular.

    Raises ConfigError for more processes than GPUs.
    """
    if device.type != "cuda" or device.index is not None or not started():
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(f"this machine has {count} GPUs, and process {local} of it would need one more")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `pyengm ARGUMENTS` that many times on this machine, as one group; returns its exit status.

    Signals to this process go on to all of them. When one of them fails, the others are ended; they stop, too, when
    this process is killed.
    """
    watched, held = os.pipe()
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        LAUNCHER: str(watched),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
    }
    # Modules are found where this process finds them; -m would look into the working directory first.
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.argv[0] = 'pyengm'\n"
    code += "from pyengm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    options = {"start_new_session": True, "pass_fds": (watched,)}
    children = [
        subprocess.Popen(command, env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}, **options)
        for i in range(processes)
    ]
    os.close(watched)

    def hand_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for child in children:
            child.kill()
        os.close(held)


def _stop_with_launcher(watched: int) -> None:
    """Waits until nobody holds the other end of the pipe: the launcher was killed, and this process is to stop."""
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """The status of the group: 0, `STATUS` where all stopped on request, else that of the first failure."""
    left, failed = list(children), None
    while left:
        for child in left:
            try:
                status = child.wait(timeout=0.1 if failed is None else GRACE)
            except subprocess.TimeoutExpired:
                if failed is not None:
                    child.kill()
                continue
            left = [other for other in left if other is not child]
            if status not in (0, STATUS) and failed is None:
                failed = status if status > 0 else 128 - status
                if status < 0:  # it could not say so itself
                    what = f"process {children.index(child)} was ended by signal {-status}, so all are"
                    print(f"{what}; a run that was begun goes on with --resume", file=sys.stderr)
                for other in left:
                    other.terminate()
            break
    statuses = {child.returncode for child in children}
    return failed if failed is not None else max(statuses)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
