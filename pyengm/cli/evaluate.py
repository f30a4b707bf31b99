"""`pyengm evaluate`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group

from pyengm.attacks import AutoAttack, ThreatModel
from pyengm.cli.evaluate_options import EvaluateConfig
from pyengm.cli.evaluate_target import Target, find_target, threats_of
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.evaluation import (
    AdversarialImages,
    as_source,
    evaluate_with_progress,
    evaluation_tables,
    final_attacks,
    further_results,
    further_tables,
    parse_spec,
    robustbench_entry,
    save_adversarial,
)
from pyengm.evaluation.model_sources import CheckpointSource
from pyengm.models import read_info
from pyengm.training import Interrupted
from pyengm.training.launcher import local_device
from pyengm.training.run import as_text
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import on_rank0, rank
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.terminal import log


def evaluate_command(options: EvaluateConfig) -> int:
    """Attacks the models of the target, prints the tables, and writes the files that the options name; returns 0."""
    _check_files(options)
    target, images = find_target(options)
    if target.trained.machine.cpu_threads is not None:
        torch.set_num_threads(target.trained.machine.cpu_threads)
    threats = threats_of(options, images.name, target.threat)
    writable = target.run is not None and os.access(target.run.path, os.W_OK)
    if target.run is not None and not writable and options.out is None:
        log(f"warning: {target.run.path} cannot be written to: the results are not kept; --out FILE keeps them")
    run = target.run if writable else None
    state = run.autoattack if run is not None else options.out and options.out.with_suffix(".autoattack")
    attacks = final_attacks(options.attacks, protocol=options.protocol, autoattack=options.autoattack)
    few = options.autoattack_examples or target.trained.evaluation.autoattack_examples
    kept: list[AdversarialImages] | None = None
    if options.save_adversarial is not None:
        _check_kept(target, threats, attacks, few or len(images), len(images))
        kept = []
    results = _evaluate(options, target, images, threats, attacks, few, state, kept)
    table = Group(evaluation_tables(results, str(options.target)), *further_tables(results))
    log(table)
    results["evaluation"] = _description(options, images, attacks)
    if rank() == 0:
        _write_files(options, target, images, threats, results, kept)
    if run is not None:
        log(f"results: {on_rank0(lambda: run.add_evaluation(results, as_text(table)))}")
    return 0


def _evaluate(
    options: EvaluateConfig,
    target: Target,
    images: ImageDataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    few: int | None,
    state: Path | None,
    kept: list[AdversarialImages] | None,
) -> dict[str, Any]:
    device = local_device(pick_device(options.device))
    try:
        results = evaluate_with_progress(
            target.models,
            images,
            threats,
            attacks,
            autoattack_examples=few,
            surrogate=options.surrogate,
            state=state,
            kept=kept,
            seed=options.seed,
            device=device,
            trust_config=options.trust_config,
        )
        return results | further_results(
            {name: as_source(found, options.trust_config) for name, found in target.models.items()},
            images,
            device=device,
            seed=options.seed,
            corruptions=options.corruptions,
            adversarial=options.from_adversarial,
        )
    except KeyboardInterrupt:
        again = "interrupted" if state is None else "interrupted; the same command resumes where it stopped"
        raise Interrupted(again) from None


def _check_files(options: EvaluateConfig) -> None:
    """Errors of files come now, not after the evaluation."""
    files = {"out": options.out, "save-adversarial": options.save_adversarial}
    files["robustbench-json"] = options.robustbench_json
    for flag, path in files.items():
        if path is not None and path.exists():
            raise ConfigError(f"{path} exists and is not overwritten; choose another --{flag}")
    for path in filter(None, files.values()):
        make_dirs(path.parent)


def _check_kept(target: Target, threats: Sequence[ThreatModel], attacks: Sequence[str], few: int, images: int) -> None:
    """Raises ConfigError where a file of adversarial images would not have one image for each attack and image."""
    if len(target.models) > 1:
        raise ConfigError(
            f"--save-adversarial takes one model, and this target has {', '.join(target.models)}: name a file of it, "
            "such as best.safetensors"
        )
    if len(threats) > 1:
        raise ConfigError("--save-adversarial takes one threat model: give --threat linf or --threat l2")
    of_autoattack = [text for text in attacks if isinstance(parse_spec(text).create(threats[0]), AutoAttack)]
    if of_autoattack and few < images:
        raise ConfigError(
            f"--save-adversarial keeps the same images for every attack, and {', '.join(of_autoattack)} would attack "
            f"{few} of {images}: give --autoattack-examples {images}, --indices FILE, or --no-autoattack"
        )


def _write_files(
    options: EvaluateConfig,
    target: Target,
    images: ImageDataset,
    threats: Sequence[ThreatModel],
    results: dict[str, Any],
    kept: list[AdversarialImages] | None,
) -> None:
    if options.out is not None:
        atomic_write(options.out, lambda path: path.write_text(_as_json(results)))
    if options.save_adversarial is not None and kept is not None:
        about = {"model": next(iter(target.models)), "seed": options.seed}
        save_adversarial(options.save_adversarial, kept, images, about)
    if options.robustbench_json is not None:
        name, found = list(target.models.items())[-1]
        source = as_source(found)
        own = isinstance(source, CheckpointSource)
        architecture = str(read_info(source.path).model["name"]) if own else str(options.target)
        entry = robustbench_entry(results, name, threats[0], architecture=architecture, data=images.name)
        atomic_write(options.robustbench_json, lambda path: path.write_text(_as_json(entry)))


def _description(options: EvaluateConfig, test: ImageDataset, attacks: list[str]) -> dict[str, Any]:
    """What was evaluated, for the file of the results."""
    given = {"weights": options.weights, "weights_entry": options.weights_entry, "surrogate": options.surrogate}
    given |= {"indices": options.indices, "corruptions": options.corruptions}
    given |= {"from_adversarial": options.from_adversarial}
    return {
        "target": str(options.target),
        "data": test.name,
        "split": options.split,
        "protocol": options.protocol,
        "attacks": attacks,
        "seed": options.seed,
        **{name: str(value) for name, value in given.items() if value is not None},
    }


def _as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2) + "\n"
