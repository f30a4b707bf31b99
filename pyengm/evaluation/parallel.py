"""Worker processes for the jobs of an evaluation on the CPU."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from types import ModuleType
from typing import Any, TypeVar

import torch

from pyengm.errors import PyengmError
from pyengm.utils.distributed import world_size

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(jobs: int, device: torch.device) -> int:
    """Number of worker processes for a number of jobs.

    Each uses torch.get_num_threads() threads, and together they use no more than the cores. It is 1 on devices other
    than the CPU and where several processes run already.
    """
    return min(jobs, cores() // torch.get_num_threads()) if device.type == "cpu" and world_size() == 1 else 1


def run_in_workers(
    jobs: Mapping[Key, Callable[[], Result]], workers: int, on_message: Callable[..., None]
) -> dict[Key, Result]:
    """Runs jobs in worker processes.

    Args:
        jobs: picklable functions without arguments.
        workers: number of processes.
        on_message: called in this process with the arguments of each `send_message` of a job.

    Returns:
        The results of the jobs under their keys.

    Raises:
        PyengmError: a worker process was killed.
        Exception: the first error of a job; the other jobs are ended.
    """
    with _worker_pool(workers) as (pool, messages):
        with _without_main_module():
            futures = {key: pool.submit(job) for key, job in jobs.items()}
        waiting = set(futures.values())
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not messages.empty():
                on_message(*messages.get())
            for future in finished:
                _raise_failure(future)
        return {key: future.result() for key, future in futures.items()}


_messages: SimpleQueue | None = None  # of a worker: the queue of messages to the parent


def send_message(*message: Any) -> None:
    """Sends a message from a job in a worker process to `on_message` of its parent.

    Raises:
        RuntimeError: this process is no worker of `run_in_workers`.
    """
    if _messages is None:
        raise RuntimeError("send_message is for jobs of run_in_workers: this process is no worker of it")
    _messages.put(message)


@contextmanager
def _worker_pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, SimpleQueue]]:
    """Processes that each use as many threads as this one, and the queue of their messages."""
    context = get_context("spawn")  # because a fork of a process with OpenMP threads may hang
    messages = context.SimpleQueue()
    watched, held = context.Pipe(duplex=False)
    arguments = (torch.get_num_threads(), messages, watched)
    with watched, held, ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        try:
            yield pool, messages
        except BaseException:
            held.close()  # ends the workers amid their work, which may be hours of it
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _without_main_module() -> Iterator[None]:
    """A context in which processes are started that do not run the script of this process again.

    Workers need the modules of their jobs alone. Without this, a script that does not ask for __name__ == "__main__"
    would train once more in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(threads: int, messages: SimpleQueue, watched: Connection) -> None:
    global _messages
    _messages = messages
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback of its own
    torch.set_num_threads(threads)


def _end_with_parent(watched: Connection) -> None:
    """Ends this worker once no process holds the other end of the pipe, also because the parent was killed."""
    with suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _raise_failure(future: Future) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise PyengmError(
            "a process of the evaluation was killed, for lack of memory perhaps: do the same again (a training with "
            "--resume); with a larger OMP_NUM_THREADS the processes are fewer"
        ) from error
