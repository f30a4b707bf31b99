"""Evaluation of a model from anywhere: accuracies under attacks and threat models."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.logits import Model, logits_of
from pyengm.attacks.model_state import attack_mode
from pyengm.data import ImageDataset, Loader, as_dataset
from pyengm.errors import ConfigError, DataError
from pyengm.evaluation.attack_registry import NATURAL
from pyengm.evaluation.attack_spec import attacks_by_threat, check_attacks, with_norm
from pyengm.evaluation.model_sources import find_source
from pyengm.evaluation.one_threat import evaluate_one_threat
from pyengm.models import Classifier, Output
from pyengm.utils.device import pick_device

DEFAULT_ATTACKS = ("pgd20", "autoattack")


@torch.inference_mode(False)
def evaluate(
    model: Model | str | os.PathLike,
    data: Any,
    *,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    threat: ThreatModel | Sequence[ThreatModel] | None = None,
    output: Output | None = None,
    bn: str = "eval",
    device: str | torch.device = "auto",
    weights: str | os.PathLike | None = None,
    entry: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    trust_config: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Evaluates a model under attacks and threat models.

    Args:
        model: Maps images in [0, 1] to logits: a module or another function, which stays as it is; a run folder, whose
            best weights are taken; a checkpoint of pyengm; or a name, as for `find_source`.
        data: The images to attack, as for `as_dataset`.
        attacks: Names of `ATTACKS` or specs, such as "pgd:steps=50,loss=ce,eps=1/255..8/255", see `parse_spec`. A
            distance, such as "deepfool", is measured once.
        threat: The threat model, or one per norm; None for that of the training, which checkpoints of pyengm name.
        output: The place of the logits in what the model returns, see `Classifier`.
        bn: Mode of the model, and of its dropout and norm layers, see `attack_mode`; AutoAttack takes "eval" only.
        device: A name of torch, or "auto": the model's own, and for files and names a GPU if there is one.
        weights, entry: The file of weights of a name, and the copy in it where there are several, see `load_weights`.
        model_options: Further arguments of `pyengm.models.build` for a name, such as mean and std.
        trust_config: Whether a function that a checkpoint names may be run.
        **options: Keyword arguments of `evaluate_one_threat`, such as seed, autoattack_examples and surrogate.

    Returns:
        Accuracies in [0, 1] and distances in pixel units by name of the attack, or by its spec, once for each radius
        where it has some ("pgd:steps=50,eps=1/255"; `curves_of` makes curves of these). The names under all but the
        first threat model end in its norm, as in "pgd20_l2", and specs have it as an option.

    Raises:
        ConfigError, CheckpointError, DataError: Options, files or data do not fit.
        ModelError, NonFiniteError: The model returns anything but logits, or values that are not finite.

    Example:
        >>> x, y, threat = torch.rand(4, 1, 2, 2), torch.arange(4), pyengm.attacks.ThreatModel("linf", 0.1)
        >>> sorted(pyengm.evaluation.evaluate(torch.nn.Flatten(), (x, y), attacks=["fgsm"], threat=threat))
        ['fgsm', 'natural']
    """
    images = as_dataset(data)
    threats = [threat] if isinstance(threat, ThreatModel) else list(threat or ())
    of_name = {"weights": weights, "entry": entry, "model_options": model_options}
    if isinstance(model, (str, os.PathLike)):
        network, trained_for = _load(model, images, threats, of_name, output=output, trust_config=trust_config)
        threats = threats or trained_for
    else:
        network = _wrap(model, output, of_name)
    where = _device_for(model, network, str(device))
    images = match_classes(images, count_classes(network.to(where), images, where))
    check_threats(threats)
    check_attacks(attacks, images, threats, surrogate=options.get("surrogate") is not None)
    run = partial(evaluate_one_threat, network, images, device=where, bn=bn, **options)
    return merge_threats({one: run(one, names) for one, names in attacks_by_threat(threats, attacks).items()})


def _device_for(model: object, network: nn.Module, device: str) -> torch.device:
    """The device of that name; "auto" is the network's own, and for names and files a GPU if there is one."""
    named = isinstance(model, (str, os.PathLike))
    return _device_of(network) if device == "auto" and not named else pick_device(device)


def _load(
    target: str | os.PathLike,
    data: ImageDataset,
    threats: Sequence[ThreatModel],
    of_name: Mapping[str, Any],
    **options: Any,
) -> tuple[nn.Module, list[ThreatModel]]:
    """The model that a file or a name stands for, and the threat model of its training where that is known."""
    source = find_source(target, data, **of_name, **options, norm=threats[0].norm if threats else None)
    source.check(data)
    return source.load(), source.threats()


def _wrap(model: Any, output: Output | None, of_name: Mapping[str, Any]) -> nn.Module:
    """A module of a model that is at hand."""
    if not callable(model):
        raise ConfigError(f"expected a model, a function, a file or a name, got {type(model).__name__}")
    if any(option is not None for option in of_name.values()):
        raise ConfigError(
            f"{', '.join(of_name)} are for models that are given by name; load the weights of this one before: "
            "pyengm.models.load_weights(model, FILE)"
        )
    return Classifier(model, output)


def _device_of(model: nn.Module) -> torch.device:
    """The device of its parameters, the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def count_classes(model: nn.Module, data: ImageDataset, device: torch.device) -> int:
    """The number of logits that a model returns for an image. Raises ModelError where it returns anything else."""
    first = Loader(data.subset([0]), 1, device=device, seed=0, augment="none", shuffle=False)
    with attack_mode(model, "eval"), torch.no_grad():
        try:
            return logits_of(model, next(first.epoch(0)).x).shape[1]
        except RuntimeError as error:  # of torch: shapes or devices that do not fit
            text = " ".join(str(error).split())
            raise DataError(f"the model does not take images of shape {data.shape} on {device}: {text}") from error


def match_classes(data: ImageDataset, classes: int) -> ImageDataset:
    """The data with the number of classes of a model; names of classes that are given must be as many.

    Raises:
        DataError: The data have another number of classes.
    """
    if data.num_classes == classes:
        return data
    numbered = data.classes == tuple(map(str, range(data.num_classes)))
    if data.num_classes < classes and numbered and data.name == "arrays":
        return ImageDataset(data.images, data.labels, range_names(classes), data.name, data.split, data.index)
    raise DataError(f"the model has {classes} classes, and {data.name} has {data.num_classes}")


def range_names(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(map(str, range(count)))


def merge_threats(results: Mapping[ThreatModel, Mapping[str, float]]) -> dict[str, float]:
    """Merges results under several threat models; names under all but the first end in its norm."""
    merged: dict[str, float] = {}
    for i, (threat, values) in enumerate(results.items()):
        merged |= {
            with_norm(name, threat.norm) if i else name: value
            for name, value in values.items()
            if i == 0 or name != NATURAL
        }
    return merged


def check_threats(threats: Sequence[ThreatModel]) -> None:
    """Checks that threat models have different norms.

    Raises:
        ConfigError: there is none, or two have one norm, so that their results would have one name.
    """
    if not threats:
        raise ConfigError("expected threat=, such as ThreatModel('linf', 8/255): the model does not say what it is for")
    if len({threat.norm for threat in threats}) < len(threats):
        raise ConfigError(f"expected one threat model per norm, got {', '.join(map(str, threats))}")


def robust_overfitting(best: float, last: float) -> float:
    """Share of the best checkpoint's robust accuracy that the last checkpoint has lost.

    Args:
        best: robust accuracy of the best checkpoint.
        last: robust accuracy of the last checkpoint.

    Returns:
        The share in per cent; 0 where the best accuracy is 0.

    References:
        Dabouei et al. 2022, Table 2.
    """
    return 100 * (best - last) / best if best > 0 else 0.0
