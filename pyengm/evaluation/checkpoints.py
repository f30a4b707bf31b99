"""The evaluation of checkpoints, on several processes where the CPU has cores to spare."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.errors import DataError, PyengmError
from pyengm.evaluation.attack_registry import check_attacks
from pyengm.evaluation.evaluate import (
    attacks_by_threat,
    check_threats,
    evaluate_under,
    evenly_spread,
    merge,
    robust_overfitting,
)
from pyengm.models import CheckpointInfo, load_checkpoint, read_info, to_fast_memory_format
from pyengm.utils.distributed import world_size


def evaluate_checkpoints(
    checkpoints: Mapping[str, Path],
    data: ImageDataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_examples: int | None = None,
    surrogate: Path | None = None,
    state: Path | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
    on_pass: Callable[[str, int, int, float], None] = lambda title, done, total, robust: None,
) -> dict[str, Any]:
    """What results.json holds: a dict of accuracies per checkpoint, and what they were measured on.

    checkpoints: files by name; identical ones are evaluated once. With "best" and "last" among them and PGD-20 among
    the attacks there is "robust_overfitting", in per cent. surrogate: the checkpoint of another model, for transfer
    attacks. state: folder from which an interrupted AutoAttack goes on, for all of the checkpoints. on_pass: told of
    AutoAttack's progress, with the checkpoint's name in the title. Other arguments as for `evaluate`.
    On the CPU, checkpoints and threat models share the cores that torch.get_num_threads() leaves idle.
    Raises CheckpointError for a damaged file, DataError where model and data do not fit, PyengmError where one of these
    processes is killed, and what `evaluate` does.
    """
    check_threats(threats)
    check_attacks(attacks, data, threats)
    for path in [*checkpoints.values(), *([] if surrogate is None else [surrogate])]:
        check_fit(read_info(path), data, path)
    contents = {name: hashlib.sha256(Path(path).read_bytes()).digest() for name, path in checkpoints.items()}
    names = {content: name for name, content in reversed(contents.items())}
    options = {"device": device, "seed": seed, "autoattack_examples": autoattack_examples, "state": state}
    jobs = {}
    with executor(len(names) * len(threats), device) as (pool, messages):
        for (content, name), (threat, asked) in product(names.items(), attacks_by_threat(threats, attacks).items()):
            arguments = (checkpoints[name], surrogate, data, threat, asked)
            if pool is None:
                here = {"on_attack": on_attack, "on_pass": partial(_with_name, on_pass, name)}
                jobs[content, threat] = _done(evaluate_file(*arguments, **options, **here))
            else:
                there = {"on_pass": partial(_with_name, _send, name)}
                jobs[content, threat] = pool.submit(evaluate_file, *arguments, **options, **there)
                on_attack(f"{len(jobs)} jobs at a time")
        waiting = set(jobs.values())
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while messages is not None and not messages.empty():
                on_pass(*messages.get())
            for job in finished:
                _raise_failure(job)
        results: dict[str, Any] = {
            name: merge({threat: jobs[content, threat].result() for threat in threats})
            for name, content in contents.items()
        }
    if {"best", "last"} <= results.keys() and "pgd20" in attacks:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    results["images"] = {"all": len(data), "autoattack": len(evenly_spread(len(data), autoattack_examples))}
    return results


def _raise_failure(job: Future) -> None:
    try:
        job.result()
    except BrokenProcessPool as error:
        raise PyengmError(
            "a process of the evaluation was killed, for lack of memory perhaps: do the same again (a training with "
            "--resume); with a larger OMP_NUM_THREADS the processes are fewer"
        ) from error


def evaluate_file(path: Path, surrogate: Path | None, *arguments: Any, **options: Any) -> dict[str, float]:
    """`evaluate_under` for the models of two checkpoints."""
    other = None if surrogate is None else load_checkpoint(surrogate)[0]
    model = to_fast_memory_format(load_checkpoint(path)[0], options["device"])
    return evaluate_under(model, *arguments, surrogate=other, **options)


def check_fit(info: CheckpointInfo, data: ImageDataset, path: Path) -> None:
    """Raises DataError unless the checkpoint's model takes the images and has as many classes."""
    model = info.model
    wanted = (model["num_classes"], model["in_channels"], model["image_size"], model["image_size"])
    if wanted != (data.num_classes, *data.shape):
        raise DataError(
            f"{path} was trained on {info.data}: {wanted[0]} classes, images of shape {wanted[1:]}; "
            f"{data.name} has {data.num_classes} classes, images of shape {data.shape}"
        )


@contextmanager
def executor(jobs: int, device: torch.device) -> Iterator[tuple[ProcessPoolExecutor | None, SimpleQueue | None]]:
    """Processes that each use as many threads as this one, no more than the cores allow, and what `_send` sends.

    None and None where one is enough.
    """
    threads = torch.get_num_threads()
    workers = min(jobs, cores() // threads) if device.type == "cpu" and world_size() == 1 else 1
    if workers < 2:
        yield None, None
        return
    context = get_context("spawn")  # because a fork of a process with OpenMP threads may hang
    messages = context.SimpleQueue()
    watched, held = context.Pipe(duplex=False)
    with watched, held, ProcessPoolExecutor(workers, context, _start_worker, (threads, messages, watched)) as pool:
        try:
            yield pool, messages
        except BaseException:
            held.close()  # ends the workers amid their work, which may be hours of it
            pool.shutdown(cancel_futures=True)
            raise


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_messages: SimpleQueue | None = None  # in a worker, the way to the parent


def _start_worker(threads: int, messages: SimpleQueue, watched: Connection) -> None:
    global _messages
    _messages = messages
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback of its own
    torch.set_num_threads(threads)


def _end_with_parent(watched: Connection) -> None:
    """Ends this worker once nobody holds the other end of the pipe, be it that the parent was killed."""
    with suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _send(*message: Any) -> None:
    _messages.put(message)


def _with_name(on_pass: Callable[..., None], name: str, title: str, *numbers: Any) -> None:
    on_pass(f"{name}: {title}", *numbers)


def _done(result: dict[str, float]) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future
