"""Evaluation of the models of checkpoints."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.evaluation.attack_registry import check_attacks
from pyengm.evaluation.evaluate import (
    attacks_by_threat,
    check_threats,
    count_classes,
    match_classes,
    merge_threats,
    robust_overfitting,
)
from pyengm.evaluation.model_sources import CheckpointSource, ModelSource
from pyengm.evaluation.one_threat import OnAttack, OnPass, evaluate_one_threat, evenly_spread
from pyengm.evaluation.parallel import run_in_workers, send_message, worker_count
from pyengm.models import to_fast_memory_format


def evaluate_checkpoints(
    checkpoints: Mapping[str, Path | ModelSource],
    data: ImageDataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_examples: int | None = None,
    surrogate: Path | None = None,
    state: Path | None = None,
    trust_config: bool = False,
    on_attack: OnAttack = lambda title: None,
    on_pass: OnPass = lambda title, done, total, robust: None,
) -> dict[str, Any]:
    """Evaluates models; the result is the content of results.json.

    On the CPU, pairs of a model and a threat model run in parallel on the cores that torch.get_num_threads() leaves.

    Args:
        checkpoints: files of pyengm, or other sources of models, by name; identical ones are evaluated once.
        data: the images to attack.
        threats: threat models, one per norm.
        attacks: names of `attack_registry.ATTACKS`.
        device: device of the evaluation.
        seed: seed of random starts and of AutoAttack.
        autoattack_examples: number of images for AutoAttack and its members; None: all.
        surrogate: the checkpoint of another model, for transfer attacks.
        state: folder of the state files from which an interrupted AutoAttack resumes, for all checkpoints.
        trust_config: whether functions that the files name as their models may be run.
        on_attack: called with the title of each attack before it starts.
        on_pass: called with the progress of AutoAttack; the title begins with the checkpoint's name.

    Returns:
        A dict of results of `evaluate` per model, and "threats" and "images", which they were measured on. With "best"
        and "last" among the names and PGD-20 among the attacks also "robust_overfitting", in per cent.

    Raises:
        PyengmError: a worker process was killed, or for the reasons that `evaluate` lists.
    """
    sources = {name: _source(found, trust_config) for name, found in checkpoints.items()}
    other = None if surrogate is None else _source(surrogate, trust_config)
    _check_compatible([*sources.values(), other], data, threats, attacks)
    contents = {name: source.identity() for name, source in sources.items()}
    names = {content: name for name, content in reversed(contents.items())}
    options = {"device": device, "seed": seed, "autoattack_examples": autoattack_examples, "state": state}
    jobs = {
        (name, threat): partial(evaluate_source, sources[name], other, data, threat, selected, **options)
        for name, (threat, selected) in product(names.values(), attacks_by_threat(threats, attacks).items())
    }
    evaluated = _run_jobs(jobs, worker_count(len(jobs), device), on_attack, on_pass)
    results: dict[str, Any] = {
        name: merge_threats({threat: evaluated[names[content], threat] for threat in threats})
        for name, content in contents.items()
    }
    if {"best", "last"} <= results.keys() and "pgd20" in attacks:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    results["images"] = {"all": len(data), "autoattack": len(evenly_spread(len(data), autoattack_examples))}
    return results


def _source(found: Path | ModelSource, trust_config: bool) -> ModelSource:
    return CheckpointSource(found, trust_config) if isinstance(found, Path) else found


def _check_compatible(
    sources: Sequence[ModelSource | None], data: ImageDataset, threats: Sequence[ThreatModel], attacks: Sequence[str]
) -> None:
    """Raises the errors of models and options that do not fit, before an evaluation of hours."""
    check_threats(threats)
    check_attacks(attacks, data, threats)
    for source in filter(None, sources):
        source.check(data)
        if not isinstance(source, CheckpointSource):
            match_classes(data, count_classes(source.load(), data, torch.device("cpu")))


def _run_jobs(
    jobs: Mapping[tuple[str, ThreatModel], partial[dict[str, float]]],
    workers: int,
    on_attack: OnAttack,
    on_pass: OnPass,
) -> dict[tuple[str, ThreatModel], dict[str, float]]:
    """The results of evaluations by checkpoint and threat model, computed in this process or in workers."""
    if workers < 2:
        return {
            (name, threat): job(on_attack=on_attack, on_pass=partial(_with_name, on_pass, name))
            for (name, threat), job in jobs.items()
        }
    on_attack(f"{len(jobs)} jobs at a time")
    remote = {
        (name, threat): partial(job, on_pass=partial(_with_name, send_message, name))
        for (name, threat), job in jobs.items()
    }
    return run_in_workers(remote, workers, on_pass)


def evaluate_source(
    source: ModelSource, surrogate: ModelSource | None, *arguments: Any, **options: Any
) -> dict[str, float]:
    """`evaluate_one_threat` for the model of a source.

    Args:
        source: the model.
        surrogate: another model, for transfer attacks.
        *arguments: data, threat and attacks of `evaluate_one_threat`.
        **options: keyword arguments of `evaluate_one_threat`.

    Returns:
        Its results.

    Raises:
        CheckpointError: a file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks before the evaluation gave them
        other = None if surrogate is None else surrogate.load()
        model = to_fast_memory_format(source.load(), options["device"])
    return evaluate_one_threat(model, *arguments, surrogate=other, **options)


def _with_name(on_pass: OnPass, name: str, title: str, done: int, total: int, robust: float) -> None:
    on_pass(f"{name}: {title}", done, total, robust)
