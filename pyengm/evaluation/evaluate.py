"""The evaluation of a model: accuracies under every attack and threat model asked for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyengm.attacks import Threat
from pyengm.data import ImageData
from pyengm.errors import DataError
from pyengm.evaluation.accuracy import correct
from pyengm.evaluation.suite import TITLES, attack_named
from pyengm.models import CheckpointInfo, load_checkpoint

SAME_PICTURES = "pgd20_on_autoattack_pictures"


def evaluate(
    model: nn.Module,
    data: ImageData,
    threats: Sequence[Threat],
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_pictures: int | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
) -> dict[str, float]:
    """Accuracies in [0, 1] by attack name; those of a second threat model carry its norm, as in "pgd20_l2".

    data: pictures to attack. attacks: names of `suite.MAKERS`. autoattack_pictures: how many of the pictures AutoAttack
    gets, spread evenly; PGD-20 on just these is reported beside it. on_attack: told each attack's title beforehand.
    Raises ConfigError for an unknown attack or one that cannot run on these pictures, NonFiniteError for a model whose
    outputs are not finite.
    """
    model = model.to(device)
    few = evenly_spread(len(data), autoattack_pictures)
    on_attack(TITLES["natural"])
    results = {"natural": _mean(correct(model, data, None, seed=seed, device=device))}
    for threat in threats:
        suffix = "" if threat is threats[0] else f"_{threat.norm}"
        for name in attacks:
            on_attack(f"{TITLES[name]} ({threat})")
            attack = attack_named(name, threat)
            if name == "autoattack":
                right = correct(model, data.subset(few), attack, seed=seed, device=device)
            else:
                right = correct(model, data, attack, seed=seed, device=device)
            results[name + suffix] = _mean(right)
            if name == "pgd20" and "autoattack" in attacks and len(few) < len(data):
                results[SAME_PICTURES + suffix] = _mean(right[few])
    return results


def robust_overfitting(best: float, last: float) -> float:
    """Per cent of the best checkpoint's robust accuracy that the last one has lost (Dabouei et al. 2022, Table 2)."""
    return 100 * (best - last) / best if best > 0 else 0.0


def evaluate_checkpoints(
    checkpoints: Mapping[str, Path],
    data: ImageData,
    threats: Sequence[Threat],
    attacks: Sequence[str],
    *,
    autoattack_pictures: int | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
    **options: Any,
) -> dict[str, Any]:
    """What results.json holds: a dict of accuracies per checkpoint, and what they were measured on.

    checkpoints: files by name; two files from the same epoch are evaluated once. With "best" and "last" among them
    there is "robust_overfitting", in per cent. Other arguments as for `evaluate`.
    Raises CheckpointError for a damaged file, DataError where model and data do not fit, and what `evaluate` does.
    """
    results: dict[str, Any] = {}
    done: dict[int, dict[str, float]] = {}
    for name, path in checkpoints.items():
        model, info = load_checkpoint(path)
        check_fit(info, data, path)
        if info.epoch not in done:
            done[info.epoch] = evaluate(
                model,
                data,
                threats,
                attacks,
                autoattack_pictures=autoattack_pictures,
                on_attack=lambda title, name=name: on_attack(f"{name}: {title}"),
                **options,
            )
        results[name] = done[info.epoch]
    if {"best", "last"} <= results.keys():
        results["robust_overfitting"] = robust_overfitting(results["best"]["pgd20"], results["last"]["pgd20"])
    results["threats"] = [{"norm": threat.norm, "eps": threat.eps} for threat in threats]
    results["pictures"] = {"all": len(data), "autoattack": len(evenly_spread(len(data), autoattack_pictures))}
    return results


def check_fit(info: CheckpointInfo, data: ImageData, path: Path) -> None:
    """Raises DataError unless the checkpoint's model takes the pictures and has as many classes."""
    model = info.model
    wanted = (model["num_classes"], model["in_channels"], model["image_size"], model["image_size"])
    if wanted != (data.num_classes, *data.shape):
        raise DataError(
            f"{path} was trained on {info.data}: {wanted[0]} classes, pictures of shape {wanted[1:]}; "
            f"{data.name} has {data.num_classes} classes, pictures of shape {data.shape}"
        )


def evenly_spread(size: int, count: int | None) -> torch.Tensor:
    """min(count, size) positions of `size`, evenly spread, so that a set sorted by class keeps its classes."""
    count = size if count is None else min(count, size)
    return torch.arange(count) * size // count


def _mean(right: torch.Tensor) -> float:
    return right.double().mean().item()
