"""Images of a run under its attack: predictions for confusion matrices, and a few images to look at."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import log_softmax
from pyengm.data import ImageDataset, Loader, load
from pyengm.errors import ConfigError, DataError, NonFiniteError
from pyengm.evaluation import create_attack
from pyengm.evaluation.accuracy import BATCH_SIZE
from pyengm.evaluation.attack_registry import TITLES
from pyengm.evaluation.model_sources import CheckpointSource
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import memory_format_of, read_info, to_fast_memory_format
from pyengm.ops import Key
from pyengm.report.source import Source
from pyengm.utils.import_object import check_trusted, is_object_spec

ATTACK = "pgd20"
STRIPS = 10  # images to look at


@dataclass(frozen=True)
class Predicted:
    """Predictions of a model for n images.

    Args:
        classes: (n,) int64, the predicted classes.
        confidence: (n,) their probabilities.
    """

    classes: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Attacked:
    """Images of a run without and under an attack, on the CPU.

    Args:
        attack: The name of the attack in words.
        threat: The threat model.
        classes: The names of the classes.
        labels: (n,) int64.
        clean: The predictions for the images as they are.
        adversarial: The predictions for the adversarial examples.
        shown: (k,) positions, among the n, of the images to look at.
        images: (k, C, H, W) these images in [0, 1].
        examples: (k, C, H, W) their adversarial examples.
    """

    attack: str
    threat: ThreatModel
    classes: Sequence[str]
    labels: Tensor
    clean: Predicted
    adversarial: Predicted
    shown: Tensor
    images: Tensor
    examples: Tensor


def attack_run(
    source: Source, count: int, *, device: torch.device, data_dir: Path | None = None, trust_config: bool = False
) -> Attacked:
    """Attacks test images of a run by PGD-20 in its threat model, with the best weights and the seed of the run.

    Args:
        source: A run.
        count: The largest number of images, which are spread evenly over the test images.
        device: Where the model runs.
        data_dir: The folder of data sets; None for that of the training.
        trust_config: Whether functions that the run names as its model or its data may be run.

    Returns:
        The predictions, and one image of each class to look at, of `STRIPS` classes at most.

    Raises:
        CheckpointError: The weights are missing or damaged.
        ConfigError: The run names code that is not trusted.
        DataError: The test images are not here or are others.
        NonFiniteError: Outputs of the model are not finite.
    """
    assert source.run is not None
    assert source.config is not None
    weights = source.run.best
    info = read_info(weights)
    if is_object_spec(info.data):
        check_trusted({"data": info.data}, weights, trust_config)
    images = _load_images(source, info.data, data_dir)
    model_source = CheckpointSource(weights, trust_config)
    model_source.check(images)
    images = images.subset(evenly_spread(len(images), count))
    shown = _one_of_each_class(images.labels)
    threat = ThreatModel(info.norm, info.eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluation of the run gave them
        model = to_fast_memory_format(model_source.load().to(device), device)
    seed = source.config.run.seed or 0
    found = _predict(model, images, threat, shown, seed=seed, device=device)
    clean, adversarial, originals, examples = found
    attack = f"{TITLES[ATTACK]} ({threat})"
    return Attacked(attack, threat, images.classes, images.labels, clean, adversarial, shown, originals, examples)


def _load_images(source: Source, name: str, data_dir: Path | None) -> ImageDataset:
    assert source.run is not None
    assert source.config is not None
    options = source.config.data
    try:
        return load(name, "test", root=data_dir or options.data_dir, image_size=options.image_size)
    except (ConfigError, DataError) as error:
        raise DataError(
            f"the test images of {source.run.path} cannot be attacked: {error}; a report of {source.run.results} alone "
            "needs no images"
        ) from error


def _one_of_each_class(labels: Tensor) -> Tensor:
    """The positions of the first image of each class, of at most `STRIPS` classes that are spread evenly."""
    present = labels.unique()
    chosen = present[evenly_spread(len(present), STRIPS)]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def _predict(
    model: nn.Module, images: ImageDataset, threat: ThreatModel, shown: Tensor, *, seed: int, device: torch.device
) -> tuple[Predicted, Predicted, Tensor, Tensor]:
    """Predictions without and under the attack, and the images to look at with their adversarial examples."""
    attack = create_attack(ATTACK, threat, seed)
    loader = Loader(
        images,
        BATCH_SIZE,
        device=device,
        seed=seed,
        augment="none",
        shuffle=False,
        memory_format=memory_format_of(model),
    )
    clean, adversarial, pairs, start = [], [], {}, 0
    for batch in loader.epoch(0):
        x_adv = attack(model, batch.x, batch.y, key=Key(seed, 0, batch.index))
        clean.append(_outputs(model, batch.x, batch.y, images.name))
        adversarial.append(_outputs(model, x_adv, batch.y, images.name))
        for position in shown.tolist():
            if start <= position < start + len(x_adv):
                pairs[position] = torch.stack([batch.x[position - start], x_adv[position - start]]).cpu()
        start += len(x_adv)
    originals, examples = torch.stack([pairs[position] for position in shown.tolist()]).unbind(1)
    return _joined(clean), _joined(adversarial), originals, examples


def _outputs(model: nn.Module, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    with attack_mode(model, "eval"), torch.no_grad():
        logits = logits_of(model, x, y)
    if not logits.isfinite().all():
        raise NonFiniteError(f"the model's outputs on {name} are nan or infinite")
    confidence, classes = log_softmax(logits).max(dim=1)
    return classes.cpu(), confidence.exp().cpu()


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> Predicted:
    classes, confidence = zip(*parts, strict=True)
    return Predicted(torch.cat(classes), torch.cat(confidence))
