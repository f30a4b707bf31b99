"""Evaluation of a model under the attacks of one threat model."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pyengm.attacks import AutoAttack, DeepFool, ThreatModel, Transfer
from pyengm.data import ImageDataset
from pyengm.evaluation.accuracy import accuracy, correct, sharded
from pyengm.evaluation.attack_registry import (
    DISTANCES,
    NATURAL,
    SAME_EXAMPLES,
    TITLES,
    TRANSFER,
    create_attack,
    member_key,
)
from pyengm.evaluation.autoattack_runs import AutoAttackVerdicts, run_autoattack
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning, warnings_of
from pyengm.evaluation.distance import robustness_distance
from pyengm.utils.distributed import all_gather_object

AFTER = "after_"  # prefix of the accuracy under a member of AutoAttack and those before it

OnAttack = Callable[[str], None]  # title of the attack that starts
OnPass = Callable[[str, int, int, float], None]  # title, passes done, their total number, robust accuracy so far
OnWarning = Callable[[str, AutoAttackWarning], None]  # name of the attack, and why its result may be too high


def evaluate_one_threat(
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
    bn: str = "eval",
    on_attack: OnAttack = lambda title: None,
    on_pass: OnPass = lambda title, done, total, robust: None,
    on_warning: OnWarning | None = None,
) -> dict[str, float]:
    """Evaluates a model under attacks of one threat model, which `check_attacks` has accepted.

    Args:
        model: classifier of images in [0, 1]; moved to `device`.
        data: the images to attack.
        threat: the threat model.
        attacks: names of `attack_registry.ATTACKS`.
        device: device of the evaluation.
        seed: seed of random starts and of AutoAttack.
        autoattack_examples: number of images, spread evenly, for AutoAttack and its members; None: all. The accuracy
            under PGD-20 on the same images is reported as well.
        surrogate: another model; adversarial examples of PGD-20 on it are tried on `model` ("transfer_pgd20").
        state: folder of the state files of `run_autoattack`.
        bn: mode of the model, and of its dropout and norm layers, for predictions and attacks, see `attack_mode`.
        on_attack, on_pass: called with the title of each attack before it starts; and with the progress of AutoAttack.
        on_warning: called with the name of an attack and each warning of AutoAttack; None gives Python warnings.

    Returns:
        Accuracies in [0, 1] and distances in pixel units by name. AutoAttack's accuracy comes with that after each of
        its members, as in "after_apgd_ce".

    Raises:
        ConfigError: an attack does not support the mode.
        NonFiniteError: outputs of the model are not finite.
    """
    model = model.to(device)
    few = evenly_spread(len(data), autoattack_examples)
    created = {name: create_attack(name, threat, seed, bn=bn) for name in attacks}
    same_examples = len(few) < len(data) and any(isinstance(attack, AutoAttack) for attack in created.values())
    results = _natural_and_transfer(model, data, threat, surrogate, on_attack, seed=seed, device=device, bn=bn)
    for name, attack in created.items():
        title = TITLES[name] if name in DISTANCES else f"{TITLES[name]} ({threat})"
        on_attack(title)
        if isinstance(attack, DeepFool):
            results[name] = robustness_distance(model, data, device=device, attack=attack)
        elif isinstance(attack, AutoAttack):
            options = {"device": device, "state": state, "progress": partial(on_pass, title)}
            found, doubts = _autoattack_results(name, attack, model, data.subset(few), **options)
            results |= found
            _report(doubts, title, name, on_warning)
        else:
            is_correct = correct(model, data, attack, seed=seed, device=device, bn=bn)
            results[name] = _mean(is_correct)
            if name == "pgd20" and same_examples:
                results[SAME_EXAMPLES] = _mean(is_correct[few])
    return results


def _report(doubts: Sequence[AutoAttackWarning], title: str, name: str, on_warning: OnWarning | None) -> None:
    for doubt in doubts:
        if on_warning is None:
            warnings.warn(f"{title}: {doubt.text}", stacklevel=2)
        else:
            on_warning(name, doubt)


def _natural_and_transfer(
    model: nn.Module,
    data: ImageDataset,
    threat: ThreatModel,
    surrogate: nn.Module | None,
    on_attack: OnAttack,
    *,
    seed: int,
    device: torch.device,
    bn: str,
) -> dict[str, float]:
    """Accuracies on the images as they are, and on adversarial examples of the surrogate if there is one."""
    on_attack(TITLES[NATURAL])
    results = {NATURAL: accuracy(model, data, None, seed=seed, device=device, bn=bn)}
    if surrogate is not None:
        on_attack(f"{TITLES[TRANSFER]} ({threat})")
        transfer = Transfer(create_attack("pgd20", threat), surrogate.to(device))
        results[TRANSFER] = accuracy(model, data, transfer, seed=seed, device=device, bn=bn)
    return results


def _autoattack_results(
    name: str, attack: AutoAttack, model: nn.Module, data: ImageDataset, **options
) -> tuple[dict[str, float], list[AutoAttackWarning]]:
    """Accuracy under an attack, after those under its members if it is AutoAttack as a whole, and its warnings."""
    messages: list[str] = []
    attack.attacks, _ = attack.applicable_members(data.num_classes, data.shape)  # `check_attacks` warns of the others

    def stages_survived(shard: ImageDataset) -> Tensor:
        verdicts = run_autoattack(attack, model, shard, **options)
        messages.extend(verdicts.messages)
        return verdicts.stages_survived

    verdicts = AutoAttackVerdicts(attack.attacks, sharded(data, stages_survived))
    results = {}
    if name == "autoattack":
        accuracies = verdicts.accuracies()
        results = {AFTER + member_key(member): accuracies[member] for member in verdicts.members}
    all_messages = [message for part in all_gather_object(messages) for message in part]
    return results | {name: _mean(verdicts.robust)}, warnings_of(all_messages)


def evenly_spread(size: int, count: int | None) -> Tensor:
    """Evenly spread positions, so that a data set sorted by class keeps its classes.

    Args:
        size: number of images.
        count: number of positions, at most `size`; None: all.

    Returns:
        Positions (min(count, size),) int64 from 0 to size - 1, in ascending order.
    """
    count = size if count is None else min(count, size)
    return torch.arange(count) * size // count


def _mean(correct: Tensor) -> float:
    return correct.double().mean().item()
