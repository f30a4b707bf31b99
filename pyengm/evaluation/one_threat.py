"""Evaluation of a model under the attacks of one threat model."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import AutoAttack, DeepFool, ThreatModel, Transfer
from pyengm.data import ImageDataset
from pyengm.evaluation.accuracy import Predictions, accuracy, predict, sharded
from pyengm.evaluation.adversarial_file import AdversarialImages
from pyengm.evaluation.attack_registry import NATURAL, SAME_EXAMPLES, TITLES, TRANSFER, Attack, member_key
from pyengm.evaluation.attack_spec import SURROGATE, AttackSpec, create_attack, parse_spec
from pyengm.evaluation.autoattack_runs import AutoAttackVerdicts, run_autoattack
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning, square_warnings, warnings_of
from pyengm.evaluation.distance import robustness_distance
from pyengm.evaluation.resumable import Resumable
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
    kept: list[AdversarialImages] | None = None,
    calibration: dict[str, float] | None = None,
    on_attack: OnAttack = lambda title: None,
    on_pass: OnPass = lambda title, done, total, robust: None,
    on_warning: OnWarning | None = None,
) -> dict[str, float]:
    """Evaluates a model under attacks of one threat model, which `check_attacks` has accepted.

    Args:
        model: classifier of images in [0, 1]; moved to `device`.
        data, threat: the images to attack, and the threat model.
        attacks: names of `attack_registry.ATTACKS` or specs, see `parse_spec`.
        device, seed: those of the evaluation; the seed is that of random starts and of AutoAttack.
        autoattack_examples: number of images, spread evenly, for AutoAttack, and for PGD-20 once more; None: all.
        surrogate: another model, whose adversarial examples of PGD-20 are tried on `model` ("transfer_pgd20").
        state: folder of the files from which an interrupted evaluation resumes.
        bn: mode of the model's dropout and norm layers, for predictions and attacks, see `attack_mode`.
        kept: a list for the adversarial images of attacks; AutoAttack, on all images, then gives its accuracy alone.
        calibration: a dict that gets the expected calibration error under each attack but AutoAttack, by name.
        on_attack, on_pass, on_warning: see `OnAttack`, `OnPass` and `OnWarning`; without the last, Python warns.

    Returns:
        Accuracies in [0, 1] and distances in pixel units by name, or by spec for each radius. AutoAttack's come with
        those after each member, as in "after_apgd_ce".

    Raises:
        ConfigError, NonFiniteError: an attack does not support the mode; outputs of the model are not finite.
    """
    model = model.to(device)
    created = _create(attacks, threat, seed, bn, surrogate and surrogate.to(device))
    few = evenly_spread(len(data), autoattack_examples)
    has_autoattack = any(isinstance(attack, AutoAttack) for _, attack in created.values())
    shared = {"seed": seed, "device": device, "bn": bn, "resumable": Resumable.of(state, model, data)}
    results = _natural_and_transfer(model, data, threat, surrogate, calibration, on_attack, **shared)
    for spec, (one, attack) in created.items():
        name, title = str(spec), spec.title() if spec.info.is_distance else f"{spec.title()} ({one})"
        on_attack(title)
        if isinstance(attack, AutoAttack) and kept is None:
            options = {"device": device, "state": state, "progress": partial(on_pass, title)}
            report = partial(_report, title, name, on_warning)
            results |= _autoattack_results(name, attack, model, data.subset(few), report, **options)
        elif isinstance(attack, DeepFool):
            results[name] = robustness_distance(model, data, attack, device=device, resumable=shared["resumable"])
        else:
            predictions = predict(model, data, attack, keep_images=kept is not None, **shared)
            _keep(kept, calibration, name, one, predictions)
            results |= _summary(name, predictions, few if has_autoattack and len(few) < len(data) else None)
    return results


def _keep(
    kept: list[AdversarialImages] | None,
    calibration: dict[str, float] | None,
    name: str,
    threat: ThreatModel,
    predictions: Predictions,
) -> None:
    if calibration is not None:
        calibration[name] = predictions.ece
    if kept is not None and predictions.images is not None:
        kept.append(AdversarialImages(name, threat.norm, threat.eps, predictions.images, predictions.correct))


def _summary(name: str, predictions: Predictions, few: Tensor | None) -> dict[str, float]:
    """The results of an attack; few: positions of AutoAttack's images, where these are not all."""
    results = {name: _mean(predictions.correct)}
    if name == "pgd20" and few is not None:
        results[SAME_EXAMPLES] = _mean(predictions.correct[few])
    return results


def _create(
    attacks: Sequence[str], threat: ThreatModel, seed: int, bn: str, surrogate: nn.Module | None
) -> dict[AttackSpec, tuple[ThreatModel, Any]]:
    """The attacks, or their transfers from the surrogate, by their specs, each with the threat model of its radius."""
    runs = (run for text in attacks for run in parse_spec(text).at_each_eps(threat))
    return {spec: (one, _on(spec.on, spec.create(one, seed, bn=bn), surrogate)) for spec, one in runs}


def _on(place: str, attack: Attack, surrogate: nn.Module | None) -> Attack:
    if place != SURROGATE:
        return attack
    assert surrogate is not None  # `check_attacks`
    return Transfer(attack, surrogate)


def _report(title: str, name: str, on_warning: OnWarning | None, doubts: Sequence[AutoAttackWarning]) -> None:
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
    calibration: dict[str, float] | None,
    on_attack: OnAttack,
    *,
    device: torch.device,
    resumable: Resumable | None,
    **options: Any,
) -> dict[str, float]:
    """Accuracies on the images as they are, and on adversarial examples of the surrogate if there is one."""
    on_attack(TITLES[NATURAL])
    natural = predict(model, data, None, device=device, **options)
    if calibration is not None:
        calibration[NATURAL] = natural.ece
    results = {NATURAL: _mean(natural.correct)}
    if surrogate is not None:
        on_attack(f"{TITLES[TRANSFER]} ({threat})")
        transfer = Transfer(create_attack("pgd20", threat), surrogate.to(device))
        results[TRANSFER] = accuracy(model, data, transfer, device=device, resumable=resumable, **options)
    return results


def _autoattack_results(
    name: str,
    attack: AutoAttack,
    model: nn.Module,
    data: ImageDataset,
    report: Callable[[Sequence[AutoAttackWarning]], None],
    **options: Any,
) -> dict[str, float]:
    """Accuracy under an attack, after those under its members if it is AutoAttack as a whole; reports its warnings."""
    messages: list[str] = []
    attack.attacks, _ = attack.applicable_members(data.num_classes, data.shape)  # `check_attacks` warns of the others

    def stages_survived(shard: ImageDataset) -> Tensor:
        verdicts = run_autoattack(attack, model, shard, **options)
        messages.extend(verdicts.messages)
        return verdicts.stages_survived

    verdicts = AutoAttackVerdicts(attack.attacks, sharded(data, stages_survived))
    results, accuracies = {}, verdicts.accuracies()
    if name == "autoattack":
        results = {AFTER + member_key(member): accuracies[member] for member in verdicts.members}
    found = warnings_of([message for part in all_gather_object(messages) for message in part])
    found += square_warnings(accuracies, len(data))
    report(found)
    return results | {name: _mean(verdicts.robust)}


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
