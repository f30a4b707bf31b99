"""The evaluation of a model: accuracies under every attack and threat model asked for."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pyengm.attacks import Threat
from pyengm.data import ImageData
from pyengm.errors import ConfigError
from pyengm.evaluation.accuracy import correct
from pyengm.evaluation.suite import TITLES, attack_named

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
    check_threats(threats)
    for name in attacks:
        attack_named(name, threats[0])
    options = {"device": device, "seed": seed, "autoattack_pictures": autoattack_pictures, "on_attack": on_attack}
    return merge({threat: evaluate_under(model, data, threat, attacks, **options) for threat in threats})


def evaluate_under(
    model: nn.Module,
    data: ImageData,
    threat: Threat,
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_pictures: int | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
) -> dict[str, float]:
    """`evaluate` under one threat model."""
    model = model.to(device)
    few = evenly_spread(len(data), autoattack_pictures)
    on_attack(TITLES["natural"])
    results = {"natural": _mean(correct(model, data, None, seed=seed, device=device))}
    for name in attacks:
        on_attack(f"{TITLES[name]} ({threat})")
        pictures = data.subset(few) if name == "autoattack" else data
        right = correct(model, pictures, attack_named(name, threat), seed=seed, device=device)
        results[name] = _mean(right)
        if name == "pgd20" and "autoattack" in attacks and len(few) < len(data):
            results[SAME_PICTURES] = _mean(right[few])
    return results


def merge(by_threat: Mapping[Threat, Mapping[str, float]]) -> dict[str, float]:
    """One dict of accuracies; names under all but the first threat model carry its norm."""
    merged: dict[str, float] = {}
    for i, (threat, accuracies) in enumerate(by_threat.items()):
        suffix = f"_{threat.norm}" if i else ""
        merged |= {name + suffix: value for name, value in accuracies.items() if i == 0 or name != "natural"}
    return merged


def check_threats(threats: Sequence[Threat]) -> None:
    """Raises ConfigError for two threat models of one norm, whose results would have one name."""
    if len({threat.norm for threat in threats}) < len(threats):
        raise ConfigError(f"expected one threat model per norm, got {', '.join(map(str, threats))}")


def robust_overfitting(best: float, last: float) -> float:
    """Per cent of the best checkpoint's robust accuracy that the last one has lost (Dabouei et al. 2022, Table 2)."""
    return 100 * (best - last) / best if best > 0 else 0.0


def evenly_spread(size: int, count: int | None) -> torch.Tensor:
    """min(count, size) positions of `size`, evenly spread, so that a set sorted by class keeps its classes."""
    count = size if count is None else min(count, size)
    return torch.arange(count) * size // count


def _mean(right: torch.Tensor) -> float:
    return right.double().mean().item()
