"""Evaluation of the models of checkpoints."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.evaluation.adversarial_file import AdversarialImages
from pyengm.evaluation.attack_registry import AUTOATTACKS
from pyengm.evaluation.attack_spec import attacks_by_threat, check_attacks, curves_of, parse_spec
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning
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
from pyengm.evaluation.standard_errors import standard_errors
from pyengm.evaluation.trust import trust_block
from pyengm.evaluation.work import Work, parts_of
from pyengm.models import to_fast_memory_format
from pyengm.utils.file_format import RESULTS_FORMAT

OnShare = Callable[[float], None]  # share of the work that is done
DETAILS = ("standard_errors", "calibration", "warnings", "trust")  # results about results


@dataclass(frozen=True)
class Evaluated:
    """The outcome for a model under a threat model.

    Args:
        accuracies: from `evaluate_one_threat`.
        warnings: those of AutoAttack, each with the title of the attack.
        trust: from `trust_block`.
        calibration: expected calibration errors by attack.
    """

    accuracies: dict[str, float]
    warnings: list[tuple[str, AutoAttackWarning]]
    trust: dict[str, Any]
    calibration: dict[str, float]


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
    kept: list[AdversarialImages] | None = None,
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
        device, seed, autoattack_examples: as for `evaluate_one_threat`.
        surrogate: the checkpoint of another model, for transfer attacks.
        state: folder of the state files from which an interrupted evaluation resumes, for all checkpoints.
        kept: as for `evaluate_one_threat`, for one model under one threat model.
        trust_config: whether functions that the files name as their models may be run.
        on_attack, on_pass: as for `evaluate_one_threat`; titles of AutoAttack begin with the checkpoint's name.
        on_share: called with the share of all work that is done, in [0, 1], before each attack and after each pass.

    Returns:
        "format"; results of `evaluate` per model; "threats" and "images", which they were measured on; with "best" and
        "last" and PGD-20 also "robust_overfitting", in per cent; and DETAILS: "standard_errors", "calibration" (by
        model and name), "warnings" of AutoAttack, with model, threat and attack, and "trust" by model and norm
        (`trust_block`).

    Raises:
        PyengmError: a worker process was killed, or for the reasons that `evaluate` lists.
    """
    sources = {name: as_source(found, trust_config) for name, found in checkpoints.items()}
    other = surrogate and as_source(surrogate, trust_config)
    _check_compatible([*sources.values(), other], data, threats, attacks)
    contents = {name: source.identity() for name, source in sources.items()}
    names = {content: name for name, content in reversed(contents.items())}
    options = {"device": device, "seed": seed, "autoattack_examples": autoattack_examples, "state": state, "kept": kept}
    selected = attacks_by_threat(threats, attacks)
    jobs = {
        (name, threat): partial(evaluate_source, sources[name], other, data, threat, some, **options)
        for name, (threat, some) in product(names.values(), selected.items())
    }
    few = len(evenly_spread(len(data), autoattack_examples))
    parts = {one: parts_of(some, one, len(data), few, transfer=other is not None) for one, some in selected.items()}
    relay = partial(_relay, Work({key: parts[key[1]] for key in jobs}), on_attack, on_pass, on_share)
    evaluated = _run_jobs(jobs, worker_count(len(jobs), device), relay)
    of_models = {name: {one: evaluated[names[key], one] for one in threats} for name, key in contents.items()}
    return _merge(of_models, threats, {"all": len(data), "autoattack": few})


def _merge(
    of_models: Mapping[str, Mapping[ThreatModel, Evaluated]], threats: Sequence[ThreatModel], images: dict[str, int]
) -> dict[str, Any]:
    """The results of all models, with what they have in common, the threat models and the numbers of images."""
    results: dict[str, Any] = {"format": RESULTS_FORMAT}
    results |= {
        name: merge_threats({threat: one.accuracies for threat, one in by_threat.items()})
        for name, by_threat in of_models.items()
    }
    curves = _curves({name: results[name] for name in of_models})
    if {"best", "last"} <= results.keys() and "pgd20" in results["best"]:
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results |= curves | {"threats": [asdict(threat) for threat in threats], "images": images}
    return results | {"standard_errors": standard_errors(results)} | _doubts(of_models)


def _doubts(of_models: Mapping[str, Mapping[ThreatModel, Evaluated]]) -> dict[str, Any]:
    """Calibration errors, the warnings of AutoAttack and the outcomes of the checks, as plain values for JSON."""
    warned = [
        {"model": name, "threat": asdict(threat), "attack": attack, **asdict(warning)}
        for name, by_threat in of_models.items()
        for threat, one in by_threat.items()
        for attack, warning in one.warnings
    ]
    checked = {
        name: {threat.norm: one.trust for threat, one in by_threat.items()} for name, by_threat in of_models.items()
    }
    calibration = {
        name: merge_threats({threat: one.calibration for threat, one in by_threat.items()})
        for name, by_threat in of_models.items()
    }
    return {"calibration": calibration, "warnings": warned, "trust": checked}


def _curves(results: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The entry "curves" of results by model; none without attacks that have radii of their own."""
    curves = {
        name: {text: {"eps": list(one), "accuracy": list(one.values())} for text, one in curves_of(values).items()}
        for name, values in results.items()
    }
    return {"curves": curves} if any(curves.values()) else {}


def as_source(found: Path | ModelSource, trust_config: bool = False) -> ModelSource:
    """The source itself, or that of a checkpoint of pyengm."""
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
    jobs: Mapping[tuple[str, ThreatModel], partial[Evaluated]],
    workers: int,
    relay: Callable[..., None],
) -> dict[tuple[str, ThreatModel], Evaluated]:
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
    calibration: dict[str, float] = {}
    options |= {"calibration": calibration, "on_warning": lambda *warning: found.append(warning)}
    accuracies = evaluate_one_threat(model, data, threat, attacks, surrogate=other, **options)
    on_attack(f"checks of the results ({threat})")
    doubts = (
        [warning for _, warning in found] if any(parse_spec(text).name in AUTOATTACKS for text in attacks) else None
    )
    few = data.subset(evenly_spread(len(data), autoattack_examples))
    trust = trust_block(model, few, threat, device=device, seed=seed, warnings=doubts)
    return Evaluated(accuracies, found, trust, calibration)
