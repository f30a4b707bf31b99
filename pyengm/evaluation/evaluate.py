"""The evaluation of a model: accuracies under every attack and threat model asked for."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyengm.attacks import Threat
from pyengm.data import ImageData
from pyengm.errors import ConfigError, DataError
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

    data: pictures to attack. threats: one per norm. attacks: names of `suite.MAKERS`. autoattack_pictures: how many
    of the pictures AutoAttack gets, spread evenly; PGD-20 on just these is reported beside it. on_attack: told each
    attack's title beforehand.
    Raises ConfigError for an unknown attack or one that cannot run on these pictures, and for two threat models of one
    norm, NonFiniteError for a model whose outputs are not finite.
    """
    if len({threat.norm for threat in threats}) < len(threats):
        raise ConfigError(f"expected one threat model per norm, got {', '.join(map(str, threats))}")
    runs = [(threat, name, attack_named(name, threat)) for threat in threats for name in attacks]
    model = model.to(device)
    few = evenly_spread(len(data), autoattack_pictures)
    on_attack(TITLES["natural"])
    results = {"natural": _mean(correct(model, data, None, seed=seed, device=device))}
    for threat, name, attack in runs:
        suffix = "" if threat is threats[0] else f"_{threat.norm}"
        on_attack(f"{TITLES[name]} ({threat})")
        pictures = data.subset(few) if name == "autoattack" else data
        right = correct(model, pictures, attack, seed=seed, device=device)
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

    checkpoints: files by name; identical ones are evaluated once. With "best" and "last" among them and PGD-20 among
    the attacks there is "robust_overfitting", in per cent. Other arguments as for `evaluate`.
    Raises CheckpointError for a damaged file, DataError where model and data do not fit, and what `evaluate` does.
    """
    results: dict[str, Any] = {}
    done: dict[bytes, dict[str, float]] = {}
    for name, path in checkpoints.items():
        model, info = load_checkpoint(path)
        check_fit(info, data, path)
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in done:
            done[content] = evaluate(
                model,
                data,
                threats,
                attacks,
                autoattack_pictures=autoattack_pictures,
                on_attack=lambda title, name=name: on_attack(f"{name}: {title}"),
                **options,
            )
        results[name] = done[content]
    if {"best", "last"} <= results.keys() and "pgd20" in attacks:
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
