"""Several processes on one run: those that torchrun has launched, and those that `--nproc` launches.

torch.distributed.elastic does not replace `launch`. Measured with torch 2.14: workers outlive a killed launcher; on a
signal it raises SignalException without their statuses, and sends a second Ctrl-C on as SIGTERM; after the failure of
one worker it kills the others within 30 seconds, whatever its shutdown_timeout.
"""

import gc
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

from pyengm.errors import ConfigError, Interrupted
from pyengm.utils.launched import is_launched

LAUNCHER = "PYENGM_LAUNCHER"  # in the environment: a pipe whose other end the launcher holds
GRACE = 60  # seconds for processes to stop after another one failed
TIMEOUT = timedelta(minutes=30)  # for one process to wait for another: the slowest part is an attack on its images


def began_by_this_job(job: Path) -> bool:
    """Whether the file `job` names the torchrun job of this process, which restarts failed processes."""
    name = job_name()
    return name is not None and job.is_file() and job.read_text().strip() == name


def job_name() -> str | None:
    """The identity of the torchrun job (--rdzv-id); None without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


@contextmanager
def process_group() -> Iterator[None]:
    """A context in which this process is in the group that it was launched for; a process alone needs no group.

    Collectives run on NCCL between GPUs and on gloo between CPUs.
    """
    if not is_launched():
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
        gc.collect()  # cycles may hold the group, too


def local_device(device: torch.device) -> torch.device:
    """The device of this process.

    Args:
        device: the device of the run.

    Returns:
        The GPU with the local rank of this process where `device` is "cuda" and several processes run, else `device`.

    Raises:
        ConfigError: this machine has fewer GPUs than processes.
    """
    if device.type != "cuda" or device.index is not None or not is_launched():
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(f"expected a GPU for each process, got {count} GPUs on this machine: use fewer processes")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `pyengm ARGUMENTS` in several processes on this machine, as one group.

    Signals to this process are sent on to all of them. When one of them fails, the others are ended; they end, too,
    when this process is killed.

    Args:
        processes: their number.
        arguments: of the command line.

    Raises:
        ConfigError: There are many more processes than cores.

    Returns:
        The exit status: 0, 75 where all stopped on request, else the status of the first failure.
    """
    most = max(8, 4 * (os.cpu_count() or 1))
    if processes > most:
        raise ConfigError(f"nproc is {processes}; expected at most {most} on this machine of {os.cpu_count()} cores")
    watched, held = os.pipe()
    environment = os.environ | {
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
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
            pass_fds=(watched,),
        )
        for rank in range(processes)
    ]
    os.close(watched)

    def forward(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for child in children:
            child.kill()
        os.close(held)


def _stop_with_launcher(watched: int) -> None:
    """Waits until no process holds the other end of the pipe, as the launcher was killed, and ends this process."""
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """The status of the group, as `launch` returns it."""
    running, failed = list(children), None
    while running:
        for child in running:
            try:
                status = child.wait(timeout=0.1 if failed is None else GRACE)
            except subprocess.TimeoutExpired:
                if failed is not None:
                    child.kill()
                continue
            running = [other for other in running if other is not child]
            if status not in (0, Interrupted.exit_status) and failed is None:
                failed = status if status > 0 else 128 - status
                if status < 0:  # it could not print an error itself
                    message = f"process {children.index(child)} was ended by signal {-status}, so all are"
                    print(f"{message}; a run that had begun resumes with --resume", file=sys.stderr)
                for other in running:
                    other.terminate()
            break
    return failed if failed is not None else max(child.returncode for child in children)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
