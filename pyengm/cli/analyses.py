"""What `pyengm analyze` computes under each name, and the panels of its figure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyengm import analysis
from pyengm.analysis import Parts
from pyengm.attacks import ThreatModel
from pyengm.cli.analysis_attacks import AnalysisAttack
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.evaluation.model_sources import CheckpointSource
from pyengm.models import to_fast_memory_format

Panel = Callable[[Any], Any]
"""Draws on the axes that it is given."""


@dataclass(frozen=True)
class AnalyzedModel:
    """A model of an analysis.

    Attributes:
        name: Of its run or file.
        epoch: Epochs before it.
        source: Loads it.
    """

    name: str
    epoch: int
    source: CheckpointSource


@dataclass(frozen=True)
class Subject:
    """What is analyzed.

    Attributes:
        models: The models, by run and then by epoch.
        runs: Run folders.
        data: The images.
        labels: (N,) labels of the whole training split, for the log of the training images.
        attack: The attack.
        bn: "eval" or "train".
        batch_size: Largest size of a batch.
        seed: Of all random values.
        device: Of the models.
    """

    models: tuple[AnalyzedModel, ...]
    runs: tuple[Path, ...]
    data: ImageDataset
    labels: Callable[[], Tensor]
    attack: AnalysisAttack
    bn: str
    batch_size: int
    seed: int
    device: torch.device

    def load(self, model: AnalyzedModel) -> nn.Module:
        """The model on the device."""
        return to_fast_memory_format(model.source.load().to(self.device), self.device)

    def last(self) -> nn.Module:
        """The last of the models, for analyses of one."""
        return self.load(self.models[-1])

    def along_run(self) -> Iterator[tuple[int, nn.Module]]:
        """The models with their epochs, loaded one at a time."""
        if len({model.name for model in self.models}) > 1:
            raise ConfigError("an analysis along a run takes one run or checkpoint: give one")
        for model in self.models:
            yield model.epoch, self.load(model)

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """(n, ...) images in [0, 1], and (n,) labels."""
        images = self.data.images[:]
        images = images if images.is_floating_point() else images.float() / 255
        return images, self.data.labels

    def options(self, *, bn: bool = True) -> dict[str, Any]:
        """Keyword arguments that the functions share."""
        return {"batch_size": self.batch_size, "seed": self.seed, **({"bn": self.bn} if bn else {})}

    def created(self) -> Any:
        """The attack to run, None for none."""
        return self.attack.create(self.bn)

    def needed(self) -> Any:
        """The attack to run, which an analysis needs. Raises ConfigError without one."""
        if (attack := self.created()) is None:
            raise ConfigError("this analysis needs an attack: --attack pgd or --attack fgsm")
        return attack

    def fosc_options(self) -> dict[str, Any]:
        """Keyword arguments of the analyses of FOSC."""
        if self.attack.name != "pgd":
            raise ConfigError("FOSC is that of PGD on the cross-entropy: give --attack pgd:steps=..,step_size=..")
        options = self.attack.options
        if options["loss"] != "ce" or options.get("restarts", 1) != 1:
            raise ConfigError(
                "FOSC is that of PGD on the cross-entropy without restarts: leave loss= and restarts= out"
            )
        return {**self.options(), "step_size": options["step_size"], "steps": options["steps"]}


@dataclass(frozen=True)
class Found:
    """What an analysis found.

    Attributes:
        results: Dataclasses of arrays by name; "" for the only one.
        panels: Of the figure, by title; None for the plot of each result.
        files: Texts by the name of a further file.
    """

    results: Mapping[str, Any]
    panels: Mapping[str, Panel] | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def figure_panels(self) -> Mapping[str, Panel]:
        """The panels by title."""
        return self.panels or {name: result.plot for name, result in self.results.items()}


def _gradient_statistics(of: Subject, parts: Parts) -> Found:
    return Found(
        {"": analysis.gradient_statistics(of.along_run(), *of.images, attack=of.created(), parts=parts, **of.options())}
    )


def _norm_correlation(of: Subject, parts: Parts) -> Found:
    options = of.options(bn=False)
    return Found(
        {"": analysis.norm_correlation(of.along_run(), *of.images, attack=of.created(), parts=parts, **options)}
    )


def _weight_errors(of: Subject, parts: Parts) -> Found:
    """With alphas at the quartiles of all norms, and the taus of ENGM's Fig. 3."""
    found = analysis.gradient_statistics(of.along_run(), *of.images, attack=of.created(), parts=parts, **of.options())
    alphas = np.quantile(found.norms, [0.25, 0.5, 0.75]).tolist()
    if alphas[0] <= 0:
        raise ConfigError("more than a quarter of the examples have no gradient: choose other examples or an attack")
    sizes = {"epochs": found.epochs, "batch_size": of.batch_size}
    return Found({"": analysis.weight_errors(found.norms, found.input_norms, alphas, [1, 10, 50], **sizes)})


def _fosc_trajectory(of: Subject, parts: Parts) -> Found:
    options = of.fosc_options()
    return Found({"": analysis.fosc_trajectory(of.last(), *of.images, of.attack.threat, parts=parts, **options)})


def _fosc_bins(of: Subject, parts: Parts) -> Found:
    options = of.fosc_options()
    return Found({"": analysis.fosc_bins(of.last(), *of.images, of.attack.threat, parts=parts, **options)})


def _fosc_distribution(of: Subject, parts: Parts) -> Found:
    """As printed, and in L-infinity also within [0, 1]."""
    options = of.fosc_options()
    boxes = {"whole ball": False, "ball within [0, 1]": True} if of.attack.threat.norm == "linf" else {"": False}
    threat = of.attack.threat
    return Found(
        {
            name: analysis.fosc_distribution(of.along_run(), *of.images, threat, box=box, parts=parts, **options)
            for name, box in boxes.items()
        }
    )


def _input_plane(of: Subject, parts: Parts) -> Found:
    found = analysis.input_plane(of.last(), *of.images, of.needed(), parts=parts, **of.options())
    few = range(min(3, len(found.losses)))
    # Levels of the mean differ from those of single images; those of the images are equal.
    levels = max((found.mean([row]) for row in few), key=lambda plane: np.ptp(plane.losses)).levels()
    panels = {f"image {of.data.index[row]}": partial(found.mean([row]).plot, levels=levels) for row in few}
    return Found({"": found}, {f"mean of {len(found.losses)} images": found.plot, **panels})


def _weight_plane(of: Subject, parts: Parts) -> Found:
    function = partial(analysis.weight_plane, of.last(), *of.images, attack=of.created(), parts=parts, **of.options())
    return Found({"line": function(), "plane": function(dims=2, seeds=(0, 1), resolution=11)})


def _hessian_top(of: Subject, parts: Parts) -> Found:
    found = analysis.hessian_top(of.last(), *of.images, attack=of.created(), k=5, parts=parts, **of.options())
    return Found({"": found})


def _instances(of: Subject, parts: Parts) -> Found:
    """Of the run's log of its training images; the groups by rank as files for --train-indices."""
    if len(of.runs) != 1:
        raise ConfigError("instances takes one run folder, with the log that pyengm train --instance-log writes")
    paths = sorted((of.runs[0] / "instances").glob("epoch-*.npz"))
    if not paths:
        raise ConfigError(f"{of.runs[0]} has no log of its training images: train with --instance-log")
    logs = [dict(np.load(path, allow_pickle=False)) for path in paths]
    found = analysis.instances(logs, of.labels().numpy())
    files = {f"subset-{i:02}.txt": "".join(f"{row}\n" for row in found.subset(i, i)) for i in range(1, 11)}
    panels = {"last epoch": found.plot, "all epochs": found.plot_norms}
    panels |= {"by epoch": found.plot_groups, "perturbations, last epoch": found.plot_deltas}
    return Found({"": found}, panels, files)


def _loss_gap(of: Subject, parts: Parts) -> Found:
    """Of the attack and FGSM-RS on one model; of two runs under the attack."""
    if len({model.name for model in of.models}) > 2:
        raise ConfigError("loss_gap takes one model, or two to compare")
    first, last = of.load(of.models[0]), of.last()
    same = len({model.name for model in of.models}) == 1
    weak = of.attack.single_step(of.bn) if same else of.created()
    pair = (last, None) if same else (first, last)
    found = analysis.loss_gap(pair[0], *of.images, of.created(), weak, model_b=pair[1], parts=parts, **of.options())
    return Found({"": found})


def _smoothness(of: Subject, parts: Parts) -> Found:
    """Of the loss without an attack, and under L-infinity and L2 of equal volume in the mean: eps and eps sqrt(d)."""
    images, labels = of.images
    pixels, threat = images[0].numel(), of.attack.threat
    linf = threat.eps if threat.norm == "linf" else min(1.0, threat.eps / math.sqrt(pixels))
    l2 = threat.eps if threat.norm == "l2" else threat.eps * math.sqrt(pixels)
    threats: Sequence[ThreatModel | None] = [None, ThreatModel("l2", l2), ThreatModel("linf", linf)]
    return Found({"": analysis.smoothness(of.last(), images, labels, threats, parts=parts, **of.options())})


def _toy_surface(parts: Parts) -> Found:
    results = {
        f"{kind} {constraint}": analysis.toy_surface(kind, constraint)
        for kind, constraint in product(("linear", "swish"), ("nt", "l2", "linf"))
    }
    panels: dict[str, Panel] = {}
    for name, result in results.items():
        panels[name] = result.plot
        panels[f"{name}, Entropy-SGD"] = partial(result.plot, entropy=True)
    return Found(results, panels)


def _cross_robustness(of: Subject, parts: Parts) -> Found:
    """All models under no attack and the attack, and under the adversarial examples of each of them."""
    models = {f"{model.name}, epoch {model.epoch}": of.load(model) for model in of.models}
    attacks = {"none": None, of.attack.name: of.needed()}
    surrogates = models if len(models) > 1 else None
    found = analysis.cross_robustness(models, attacks, *of.images, surrogates=surrogates, parts=parts, **of.options())
    return Found({"": found})


def _accuracy_curve(of: Subject, parts: Parts) -> Found:
    """Over eps from 0 to twice the radius, and over steps; the checks for masked gradients with the first."""
    eps = of.attack.threat.eps
    if not eps > 0:
        raise ConfigError("accuracy_curve needs a radius above 0: --attack pgd:eps=..")
    curve = partial(analysis.accuracy_curve, of.last(), *of.images, of.attack.threat, parts=parts, **of.options())
    radii = [eps * k / 4 for k in range(9)]
    return Found(
        {
            "eps": curve(radii, square_examples=min(100, len(of.data))),
            "steps": curve([1, 2, 5, 10, 20, 50], over="steps", checks=False),
        }
    )


ANALYSES: Mapping[str, Callable[[Subject, Parts], Found]] = {
    "gradient_statistics": _gradient_statistics,
    "norm_correlation": _norm_correlation,
    "weight_errors": _weight_errors,
    "fosc_trajectory": _fosc_trajectory,
    "fosc_bins": _fosc_bins,
    "fosc_distribution": _fosc_distribution,
    "cross_robustness": _cross_robustness,
    "accuracy_curve": _accuracy_curve,
    "input_plane": _input_plane,
    "weight_plane": _weight_plane,
    "instances": _instances,
    "loss_gap": _loss_gap,
    "smoothness": _smoothness,
    "toy_surface": lambda of, parts: _toy_surface(parts),
    "hessian_top": _hessian_top,
}
ANALYSES_ALONE: Mapping[str, Callable[[Parts], Found]] = {"toy_surface": _toy_surface}
"""Analyses of no model."""
