"""The analyses that figures need after their sweep."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyengm import __version__
from pyengm.analysis import LossGap, Parts, cross_robustness, loss_gap
from pyengm.attacks import PGD
from pyengm.cli.analyses import Found
from pyengm.cli.analyze import is_there, run_analysis
from pyengm.comparison.options import pixel_scale
from pyengm.data import ImageDataset
from pyengm.evaluation.hashes import hash_of_images
from pyengm.evaluation.model_sources import CheckpointSource
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import to_fast_memory_format
from pyengm.sweep import Sweep
from pyengm.training import RunFolder, TrainConfig, load_split
from pyengm.utils.device import pick_device
from pyengm.utils.figures import COLORS
from pyengm.utils.terminal import log

EXAMPLES = 1000  # images of an analysis, spread evenly over the split
SPLITS = {"cross_robustness": "test", "loss_gap": "train"}


def analyze_part(name: str, sweep: Sweep, points: Sequence[str], folder: Path) -> None:
    """Analyses the last weights of the first complete run of each point, and writes the files of the analysis.

    Args:
        name: cross_robustness: every model under PGD as every training has it. loss_gap: the model of the last point
            under PGD-10 and under one step from a random start, of the size of each training.
        sweep: The sweep.
        points: The points, whose method and threat model are the same.
        folder: For the files.

    Raises:
        Interrupted: After Ctrl-C.
    """
    runs = {point: RunFolder(found[0]) for point in points if (found := sweep.complete_folders(point))}
    configs = {point: sweep.points[point] for point in runs}
    config = next(iter(configs.values()))
    data = load_split(config.override(train_indices=None), SPLITS[name])
    data = data.subset(evenly_spread(len(data), EXAMPLES))
    sources = {point: CheckpointSource(run.last, trust_config=True) for point, run in runs.items()}
    description = {
        "configuration": {"split": SPLITS[name], "bn": "eval", "seed": 0, "version": __version__},
        "models": {point: source.identity() for point, source in sources.items()},
        "data": {"name": data.name, "examples": len(data), "sha256": hash_of_images(data)},
    }
    if is_there(folder, name, description):
        log(f"{folder / name}.json is there already, made with the same models")
        return
    load = partial(_load, config)
    models = {point: load(source) for point, source in sources.items()}
    run_analysis(name, partial(_ANALYSES[name], models, configs, *_images(data)), folder, description)
    log(f"{name}: {folder / name}.npz, .json, .svg, .png")


def _load(config: TrainConfig, source: CheckpointSource) -> nn.Module:
    device = pick_device(config.machine.device)
    return to_fast_memory_format(source.load().to(device), device)


def _images(data: ImageDataset) -> tuple[Tensor, Tensor]:
    images = data.images[:]
    return (images if images.is_floating_point() else images.float() / 255), data.labels


def _pgd(config: TrainConfig, *, steps: int | None = None, step_size: float | None = None) -> PGD:
    """PGD on the cross-entropy as the training has it, but for what is given."""
    eps = config.attack.eps
    steps = steps or config.attack.steps or 1
    size = step_size or config.attack.step_size or eps / 4
    return PGD(eps, size, steps, norm=config.attack.threat)


def _cross_robustness(
    models: Mapping[str, nn.Module], configs: Mapping[str, TrainConfig], images: Tensor, labels: Tensor, parts: Parts
) -> Found:
    attacks = {f"PGD, {point}": _pgd(config) for point, config in configs.items()}
    return Found({"": cross_robustness(models, attacks, images, labels, parts=parts)})


def _loss_gap(
    models: Mapping[str, nn.Module], configs: Mapping[str, TrainConfig], images: Tensor, labels: Tensor, parts: Parts
) -> Found:
    last = list(models)[-1]
    strong = _pgd(configs[last], steps=10, step_size=configs[last].attack.eps / 4)
    sizes = [config.attack.step_size or 0.0 for config in configs.values()]
    gaps = {
        point: loss_gap(models[last], images, labels, strong, _pgd(configs[point], steps=1), parts=parts)
        for point in configs
    }
    return Found(gaps, {f"model: {last}": partial(_plot_gaps, sizes, list(gaps.values()))})


def _plot_gaps(sizes: Sequence[float], gaps: Sequence[LossGap], ax: Any) -> None:
    """The mean gap by step size, with standard errors over the images."""
    means = [one.gap.mean() for one in gaps]
    errors = [one.gap.std() / np.sqrt(len(one.gap)) for one in gaps]
    scale = pixel_scale("step_size", sizes)
    ax.errorbar(scale * np.array(sizes), means, errors, marker="o", capsize=3, color=COLORS[0])
    unit = " (1/255)" if scale == 255 else ""
    ax.set(xlabel=f"step size of the single step{unit}", ylabel="mean loss under PGD-10, less that under the step")
    ax.grid(alpha=0.3)


_ANALYSES: Mapping[str, Callable[..., Found]] = {"cross_robustness": _cross_robustness, "loss_gap": _loss_gap}
