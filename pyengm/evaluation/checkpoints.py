"""Evaluation of the models of checkpoints."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.evaluation.attack_spec import attacks_by_threat, check_attacks, curves_of
from pyengm.evaluation.autoattack_runs import warn_of_square
from pyengm.evaluation.evaluate import (
    check_threats,
    count_classes,
    match_classes,
    merge_threats,
    robust_overfitting,
)
from pyengm.evaluation.model_sources import CheckpointSource, ModelSource
from pyengm.evaluation.one_threat import OnAttack, OnPass, evaluate_one_threat, evenly_spread
from pyengm.evaluation.parallel import run_in_workers, send_message, worker_count
from pyengm.evaluation.work import Work, parts_of
from pyengm.models import to_fast_memory_format

OnShare = Callable[[float], None]  # share of the work that is done


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
    on_share: OnShare = lambda share: None,
) -> dict[str, Any]:
    """Evaluates models; the result is the content of results.json.

    On the CPU, pairs of a model and a threat model run in parallel on the cores that torch.get_num_threads() leaves.

    Args:
        checkpoints: files of pyengm, or other sources of models, by name; identical ones are evaluated once.
        data: the images to attack.
        threats: threat models, one per norm.
        attacks: names of `attack_registry.ATTACKS` or specs, see `parse_spec`.
        device: device of the evaluation.
        seed: seed of random starts and of AutoAttack.
        autoattack_examples: number of images for AutoAttack and its members; None: all.
        surrogate: the checkpoint of another model, for transfer attacks.
        state: folder of the state files from which an interrupted evaluation resumes, for all checkpoints.
        trust_config: whether functions that the files name as their models may be run.
        on_attack: called with the title of each attack before it starts.
        on_pass: called with the progress of AutoAttack; the title begins with the checkpoint's name.
        on_share: called with the share of all work that is done, in [0, 1], before each attack and after each pass.

    Returns:
        A dict of results of `evaluate` per model, and "threats" and "images", which they were measured on. With "best"
        and "last" among the names and PGD-20 among the attacks also "robust_overfitting", in per cent.

    Raises:
        PyengmError: a worker process was killed, or for the reasons that `evaluate` lists.
    """
    sources = {name: _source(found, trust_config) for name, found in checkpoints.items()}
    other = surrogate and _source(surrogate, trust_config)
    _check_compatible([*sources.values(), other], data, threats, attacks)
    contents = {name: source.identity() for name, source in sources.items()}
    names = {content: name for name, content in reversed(contents.items())}
    options = {"device": device, "seed": seed, "autoattack_examples": autoattack_examples, "state": state}
    selected = attacks_by_threat(threats, attacks)
    jobs = {
        (name, threat): partial(evaluate_source, sources[name], other, data, threat, some, **options)
        for name, (threat, some) in product(names.values(), selected.items())
    }
    few = len(evenly_spread(len(data), autoattack_examples))
    parts = {one: parts_of(some, one, len(data), few, transfer=other is not None) for one, some in selected.items()}
    relay = partial(_relay, Work({key: parts[key[1]] for key in jobs}), on_attack, on_pass, on_share)
    evaluated = _run_jobs(jobs, worker_count(len(jobs), device), relay)
    results = _by_model({name: names[content] for name, content in contents.items()}, threats, evaluated, few)
    results |= _curves({name: results[name] for name in contents})
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    return results | {"images": {"all": len(data), "autoattack": few}}


def _by_model(
    evaluated_as: Mapping[str, str],
    threats: Sequence[ThreatModel],
    evaluated: Mapping[tuple[str, ThreatModel], dict[str, float]],
    few: int,
) -> dict[str, Any]:
    """The results by model, where `evaluated_as` names the one of identical models that was evaluated."""
    results: dict[str, Any] = {
        name: merge_threats({threat: evaluated[one, threat] for threat in threats})
        for name, one in evaluated_as.items()
    }
    for name in dict.fromkeys(evaluated_as.values()):
        warn_of_square(results[name], name, few)
    if {"best", "last"} <= results.keys() and "pgd20" in results["best"]:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    return results


def _curves(results: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The entry "curves" of results by model; none without attacks that have radii of their own."""
    curves = {
        name: {text: {"eps": list(one), "accuracy": list(one.values())} for text, one in curves_of(values).items()}
        for name, values in results.items()
    }
    return {"curves": curves} if any(curves.values()) else {}


def _source(found: Path | ModelSource, trust_config: bool) -> ModelSource:
    return CheckpointSource(found, trust_config) if isinstance(found, Path) else found


def _check_compatible(
    sources: Sequence[ModelSource | None], data: ImageDataset, threats: Sequence[ThreatModel], attacks: Sequence[str]
) -> None:
    """Raises the errors of models and options that do not fit, before an evaluation of hours."""
    check_threats(threats)
    check_attacks(attacks, data, threats, surrogate=sources[-1] is not None)
    for source in filter(None, sources):
        source.check(data)
        if not isinstance(source, CheckpointSource):
            match_classes(data, count_classes(source.load(), data, torch.device("cpu")))


def _run_jobs(
    jobs: Mapping[tuple[str, ThreatModel], partial[dict[str, float]]],
    workers: int,
    relay: Callable[..., None],
) -> dict[tuple[str, ThreatModel], dict[str, float]]:
    """The results of evaluations by checkpoint and threat model, computed in this process or in workers."""
    if workers < 2:
        return {key: job(on_attack=partial(relay, key), on_pass=partial(relay, key)) for key, job in jobs.items()}
    remote = {
        key: partial(job, on_attack=partial(send_message, key), on_pass=partial(send_message, key))
        for key, job in jobs.items()
    }
    return run_in_workers(remote, workers, relay)


def _relay(
    work: Work,
    on_attack: OnAttack,
    on_pass: OnPass,
    on_share: OnShare,
    key: tuple[str, Any],
    title: str,
    *progress: Any,
) -> None:
    """Passes the messages of a job on: the title of an attack that begins, or that of AutoAttack with its progress."""
    if progress:
        done, total, robust = progress
        work.advance(key, done, total)
        on_pass(f"{key[0]}: {title}", done, total, robust)
    else:
        work.begin(key)
        on_attack(title)
    on_share(work.share())


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
