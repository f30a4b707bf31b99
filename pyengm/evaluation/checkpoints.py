"""The evaluation of checkpoints, on several processes where the CPU has cores to spare."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import Threat
from pyengm.data import ImageData
from pyengm.errors import DataError
from pyengm.evaluation.evaluate import check_threats, evaluate_under, evenly_spread, merge, robust_overfitting
from pyengm.models import CheckpointInfo, load_checkpoint, read_info


def evaluate_checkpoints(
    checkpoints: Mapping[str, Path],
    data: ImageData,
    threats: Sequence[Threat],
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_pictures: int | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
) -> dict[str, Any]:
    """What results.json holds: a dict of accuracies per checkpoint, and what they were measured on.

    checkpoints: files by name; identical ones are evaluated once. With "best" and "last" among them and PGD-20 among
    the attacks there is "robust_overfitting", in per cent. Other arguments as for `evaluate`.
    On the CPU, checkpoints and threat models share the cores that torch.get_num_threads() leaves idle.
    Raises CheckpointError for a damaged file, DataError where model and data do not fit, and what `evaluate` does.
    """
    check_threats(threats)
    for path in checkpoints.values():
        check_fit(read_info(path), data, path)
    contents = {name: hashlib.sha256(Path(path).read_bytes()).digest() for name, path in checkpoints.items()}
    files = {contents[name]: path for name, path in checkpoints.items()}
    options = {"device": device, "seed": seed, "autoattack_pictures": autoattack_pictures}
    jobs = {}
    with executor(len(files) * len(threats), device) as pool:
        for (content, path), threat in product(files.items(), threats):
            arguments = (path, data, threat, attacks)
            if pool is None:
                jobs[content, threat] = _done(evaluate_file(*arguments, **options, on_attack=on_attack))
            else:
                jobs[content, threat] = pool.submit(evaluate_file, *arguments, **options)
                on_attack(f"{len(jobs)} pairs of checkpoint and threat model at a time")
        results: dict[str, Any] = {
            name: merge({threat: jobs[content, threat].result() for threat in threats})
            for name, content in contents.items()
        }
    if {"best", "last"} <= results.keys() and "pgd20" in attacks:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    results["pictures"] = {"all": len(data), "autoattack": len(evenly_spread(len(data), autoattack_pictures))}
    return results


def evaluate_file(path: Path, *arguments: Any, **options: Any) -> dict[str, float]:
    """`evaluate_under` for the model of a checkpoint."""
    return evaluate_under(load_checkpoint(path)[0], *arguments, **options)


def check_fit(info: CheckpointInfo, data: ImageData, path: Path) -> None:
    """Raises DataError unless the checkpoint's model takes the pictures and has as many classes."""
    model = info.model
    wanted = (model["num_classes"], model["in_channels"], model["image_size"], model["image_size"])
    if wanted != (data.num_classes, *data.shape):
        raise DataError(
            f"{path} was trained on {info.data}: {wanted[0]} classes, pictures of shape {wanted[1:]}; "
            f"{data.name} has {data.num_classes} classes, pictures of shape {data.shape}"
        )


@contextmanager
def executor(jobs: int, device: torch.device) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that each use as many threads as this one, no more than the cores allow; None where one is enough."""
    threads = torch.get_num_threads()
    workers = min(jobs, cores() // threads) if device.type == "cpu" else 1
    if workers < 2:
        yield None
        return
    # Spawned, because a fork of a process with OpenMP threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (threads,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback of its own
    torch.set_num_threads(threads)


def _done(result: dict[str, float]) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future
