"""Evaluation of the models of checkpoints."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.evaluation.attack_registry import AUTOATTACKS, check_attacks
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning
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
from pyengm.evaluation.standard_errors import standard_errors
from pyengm.evaluation.trust import trust_block
from pyengm.models import to_fast_memory_format

DETAILS = ("standard_errors", "warnings", "trust")  # results about results


@dataclass(frozen=True)
class Evaluated:
    """The outcome for a model under a threat model.

    Args:
        accuracies: from `evaluate_one_threat`.
        warnings: those of AutoAttack, each with the title of the attack.
        trust: from `trust_block`.
    """

    accuracies: dict[str, float]
    warnings: list[tuple[str, AutoAttackWarning]]
    trust: dict[str, Any]


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
        on_attack, on_pass: as for `evaluate_one_threat`; titles of AutoAttack begin with the checkpoint's name.

    Returns:
        A dict of results of `evaluate` per model, and "threats" and "images", which they were measured on. With "best"
        and "last" among the names and PGD-20 among the attacks also "robust_overfitting", in per cent. The rest are
        DETAILS: "standard_errors" by model and name, "warnings" of AutoAttack with the model, the threat and the
        attack that each belongs to, and "trust" by model and norm, see `trust_block`.

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
    of_models = {name: {one: evaluated[names[key], one] for one in threats} for name, key in contents.items()}
    results: dict[str, Any] = {
        name: merge_threats({threat: one.accuracies for threat, one in by_threat.items()})
        for name, by_threat in of_models.items()
    }
    if {"best", "last"} <= results.keys() and "pgd20" in attacks:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    results["images"] = {"all": len(data), "autoattack": len(evenly_spread(len(data), autoattack_examples))}
    return results | {"standard_errors": standard_errors(results)} | _doubts(of_models)


def _doubts(of_models: Mapping[str, Mapping[ThreatModel, Evaluated]]) -> dict[str, Any]:
    """The warnings of AutoAttack and the outcomes of the checks, as plain values for JSON."""
    warned = [
        {"model": name, "threat": asdict(threat), "attack": attack, **asdict(warning)}
        for name, by_threat in of_models.items()
        for threat, one in by_threat.items()
        for attack, warning in one.warnings
    ]
    checked = {
        name: {threat.norm: one.trust for threat, one in by_threat.items()} for name, by_threat in of_models.items()
    }
    return {"warnings": warned, "trust": checked}


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
    jobs: Mapping[tuple[str, ThreatModel], partial[Evaluated]],
    workers: int,
    on_attack: OnAttack,
    on_pass: OnPass,
) -> dict[tuple[str, ThreatModel], Evaluated]:
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
    source: ModelSource,
    surrogate: ModelSource | None,
    data: ImageDataset,
    threat: ThreatModel,
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int,
    autoattack_examples: int | None,
    on_attack: OnAttack = lambda title: None,
    **options: Any,
) -> Evaluated:
    """`evaluate_one_threat` and `trust_block` for the model of a source.

    Args:
        source: the model.
        surrogate: another model, for transfer attacks.
        data, threat, attacks, device, seed, autoattack_examples, on_attack: arguments of `evaluate_one_threat`.
        **options: further keyword arguments of it.

    Raises:
        CheckpointError: a file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks before the evaluation gave them
        other = None if surrogate is None else surrogate.load()
        model = to_fast_memory_format(source.load(), device)
    options |= {"device": device, "seed": seed, "autoattack_examples": autoattack_examples, "on_attack": on_attack}
    found: list[tuple[str, AutoAttackWarning]] = []
    accuracies = evaluate_one_threat(
        model, data, threat, attacks, surrogate=other, on_warning=lambda *warning: found.append(warning), **options
    )
    on_attack(f"checks of the results ({threat})")
    doubts = [warning for _, warning in found] if set(attacks) & set(AUTOATTACKS) else None
    few = data.subset(evenly_spread(len(data), autoattack_examples))
    trust = trust_block(model, few, threat, device=device, seed=seed, warnings=doubts)
    return Evaluated(accuracies, found, trust)


def _with_name(on_pass: OnPass, name: str, title: str, done: int, total: int, robust: float) -> None:
    on_pass(f"{name}: {title}", done, total, robust)
