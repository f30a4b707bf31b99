"""What an evaluation reports besides attacks: common corruptions, and adversarial images of another model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.errors import DataError
from pyengm.evaluation.accuracy import accuracy
from pyengm.evaluation.adversarial_file import load_adversarial
from pyengm.evaluation.attack_spec import parse_spec
from pyengm.evaluation.corruptions import evaluate_corruptions, mean_accuracy
from pyengm.evaluation.model_sources import ModelSource
from pyengm.models import to_fast_memory_format

FURTHER = ("corruptions", "from_adversarial")  # their names in the results


def further_results(
    sources: Mapping[str, ModelSource],
    data: ImageDataset,
    *,
    device: torch.device,
    seed: int = 0,
    corruptions: Path | None = None,
    adversarial: Path | None = None,
) -> dict[str, Any]:
    """Accuracies on corrupted images and on adversarial images of another model.

    Args:
        sources: the models by name.
        data: the test images.
        device: device of the evaluation.
        seed: seed of random numbers.
        corruptions: see `evaluate_corruptions`; None: none.
        adversarial: a file of `save_adversarial`; None: none.

    Returns:
        "corruptions": by model, their "mean" and five accuracies by corruption. "from_adversarial": "attacks", with
        name, norm and eps of the threat model, the accuracy of the attacked model itself, and "accuracy" by model.

    Raises:
        DataError: files have another layout, or images that the models do not take.
        ConfigError: for the reasons that `evaluate_corruptions` lists.
    """
    results: dict[str, Any] = {}
    models = {name: to_fast_memory_format(source.load(), device) for name, source in sources.items()}
    if corruptions is not None:
        found = {
            name: evaluate_corruptions(model, corruptions, data, device=device, seed=seed)
            for name, model in models.items()
        }
        results["corruptions"] = {name: {"mean": mean_accuracy(values), **values} for name, values in found.items()}
    if adversarial is not None:
        results["from_adversarial"] = _transferred(adversarial, models, data, device, seed)
    return results


def _transferred(
    path: Path, models: Mapping[str, torch.nn.Module], data: ImageDataset, device: torch.device, seed: int
) -> dict[str, Any]:
    found, sets, _ = load_adversarial(path)
    for one in sets:
        if (one.shape, one.classes) != (data.shape, data.classes):
            raise DataError(
                f"{path} has images of {'x'.join(map(str, one.shape))} in {one.num_classes} classes, and the models "
                f"take {'x'.join(map(str, data.shape))} in {data.num_classes}"
            )
    attacks = [
        {
            "attack": one.attack,
            "norm": one.norm,
            "eps": one.eps,
            "images": len(images),
            "attacked": one.correct.double().mean().item(),
            "accuracy": {
                name: accuracy(model, images, None, seed=seed, device=device) for name, model in models.items()
            },
        }
        for one, images in zip(found, sets, strict=True)
    ]
    return {"file": path.name, "attacks": attacks}


def further_tables(results: Mapping[str, Any]) -> list[Table]:
    """The tables of `further_results` that are among the results."""
    tables = []
    if "corruptions" in results:
        tables.append(_corruptions_table(results["corruptions"]))
    if "from_adversarial" in results:
        tables.append(_transfer_table(results["from_adversarial"]))
    return tables


def _corruptions_table(found: Mapping[str, Any]) -> Table:
    table = Table(title="Common corruptions, mean of severities 1 to 5", title_justify="left")
    table.add_column("corruption")
    for name in found:
        table.add_column(f"{name} %", justify="right")
    kinds = [kind for kind in next(iter(found.values())) if kind != "mean"]
    for kind in kinds:
        table.add_row(kind, *(f"{100 * sum(one[kind]) / len(one[kind]):.2f}" for one in found.values()))
    table.add_row("mean", *(f"{100 * one['mean']:.2f}" for one in found.values()))
    return table


def _transfer_table(found: Mapping[str, Any]) -> Table:
    table = Table(title=f"Adversarial images of {found['file']}", title_justify="left")
    table.add_column("attack")
    table.add_column("threat model")
    table.add_column("attacked model %", justify="right")
    names = list(found["attacks"][0]["accuracy"]) if found["attacks"] else []
    for name in names:
        table.add_column(f"{name} %", justify="right")
    for one in found["attacks"]:
        threat = str(ThreatModel(one["norm"], one["eps"]))
        values = (one["attacked"], *one["accuracy"].values())
        table.add_row(parse_spec(one["attack"]).title(), threat, *(f"{100 * value:.2f}" for value in values))
    return table
