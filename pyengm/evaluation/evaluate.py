"""The evaluation of a model: accuracies under every attack and threat model asked for."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pyengm.attacks import AutoAttack, ThreatModel
from pyengm.attacks.autoattack import Verdicts
from pyengm.attacks.deepfool import DeepFool
from pyengm.attacks.transfer import Transfer
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.evaluation.accuracy import accuracy, correct, sharded
from pyengm.evaluation.attack_registry import DISTANCES, TITLES, TRANSFER, attack_named, check_attacks
from pyengm.evaluation.distance import robustness_distance

SAME_EXAMPLES = "pgd20_on_autoattack_examples"
AFTER = "after_"  # before a member of AutoAttack: the accuracy that it and those before it have left


def evaluate(
    model: nn.Module, data: ImageDataset, threats: Sequence[ThreatModel], attacks: Sequence[str], **options
) -> dict[str, float]:
    """Accuracies in [0, 1] by attack name; those of a second threat model carry its norm, as in "pgd20_l2".

    data: images to attack. threats: one per norm. attacks: names of `suite.ATTACKS`; "deepfool" gives
    `robustness_distance`, once. options: those of `evaluate_under`.
    Raises ConfigError for an unknown attack or one that cannot run on these images, and for two threat models of one
    norm, NonFiniteError for a model whose outputs are not finite. Warns of members that AutoAttack runs without.
    """
    check_threats(threats)
    check_attacks(attacks, data, threats)
    asked = attacks_by_threat(threats, attacks)
    return merge({threat: evaluate_under(model, data, threat, names, **options) for threat, names in asked.items()})


def evaluate_under(
    model: nn.Module,
    data: ImageDataset,
    threat: ThreatModel,
    attacks: Sequence[str],
    *,
    device: torch.device,
    seed: int = 0,
    autoattack_examples: int | None = None,
    surrogate: nn.Module | None = None,
    state: Path | None = None,
    on_attack: Callable[[str], None] = lambda title: None,
    on_pass: Callable[[str, int, int, float], None] = lambda title, done, total, robust: None,
) -> dict[str, float]:
    """`evaluate` under one threat model.

    autoattack_examples: how many of the images AutoAttack and its members get, spread evenly; PGD-20 on just these
    is reported beside it. surrogate: PGD-20 on this model is tried on `model` too ("transfer_pgd20").
    state: folder from which AutoAttack goes on (`AutoAttack.run`). on_attack: told each attack's title beforehand.
    on_pass: AutoAttack's progress, after its title.
    AutoAttack's accuracy comes with that after each of its members, as in "after_apgd_ce".
    """
    model = model.to(device)
    few = evenly_spread(len(data), autoattack_examples)
    made = {name: attack_named(name, threat, seed) for name in attacks}
    show_same = len(few) < len(data) and any(isinstance(attack, AutoAttack) for attack in made.values())
    on_attack(TITLES["natural"])
    results = {"natural": accuracy(model, data, None, seed=seed, device=device)}
    if surrogate is not None:
        on_attack(f"{TITLES[TRANSFER]} ({threat})")
        transfer = Transfer(attack_named("pgd20", threat), surrogate.to(device))
        results[TRANSFER] = accuracy(model, data, transfer, seed=seed, device=device)
    for name, attack in made.items():
        title = TITLES[name] if name in DISTANCES else f"{TITLES[name]} ({threat})"
        on_attack(title)
        if isinstance(attack, DeepFool):
            results[name] = robustness_distance(model, data, device=device, attack=attack)
        elif isinstance(attack, AutoAttack):
            attack.attacks, _ = attack.fitting(data.num_classes, data.shape)  # `check_attacks` has warned of the others
            show = partial(on_pass, title)
            predict = partial(_survived, attack, model, device, state, show)
            verdicts = Verdicts(attack.attacks, sharded(data.subset(few), predict))
            if name == "autoattack":
                after = verdicts.accuracies()
                results |= {AFTER + member.replace("-", "_"): after[member] for member in verdicts.members}
            results[name] = _mean(verdicts.robust)
        else:
            right = correct(model, data, attack, seed=seed, device=device)
            results[name] = _mean(right)
            if name == "pgd20" and show_same:
                results[SAME_EXAMPLES] = _mean(right[few])
    return results


def _survived(
    attack: AutoAttack,
    model: nn.Module,
    device: torch.device,
    state: Path | None,
    progress: Callable[[int, int, float], None],
    data: ImageDataset,
) -> torch.Tensor:
    return attack.run(model, data, device=device, state=state, progress=progress).survived


def attacks_by_threat(threats: Sequence[ThreatModel], attacks: Sequence[str]) -> dict[ThreatModel, list[str]]:
    """The attacks to run under each threat model: distances belong to none, and are measured under the first."""
    return {threat: [name for name in attacks if i == 0 or name not in DISTANCES] for i, threat in enumerate(threats)}


def merge(by_threat: Mapping[ThreatModel, Mapping[str, float]]) -> dict[str, float]:
    """One dict of accuracies; names under all but the first threat model carry its norm."""
    merged: dict[str, float] = {}
    for i, (threat, accuracies) in enumerate(by_threat.items()):
        suffix = f"_{threat.norm}" if i else ""
        merged |= {name + suffix: value for name, value in accuracies.items() if i == 0 or name != "natural"}
    return merged


def check_threats(threats: Sequence[ThreatModel]) -> None:
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
