"""`pyengm evaluate`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pyengm.attacks import THREAT_NORMS, ThreatModel
from pyengm.data import ImageDataset, load
from pyengm.errors import ConfigError
from pyengm.evaluation import (
    DETAILS,
    ModelSource,
    evaluate_with_progress,
    evaluation_tables,
    final_attacks,
    find_source,
)
from pyengm.models import read_info
from pyengm.training import Interrupted, RunFolder, TrainConfig
from pyengm.training.config import default_threats
from pyengm.training.launcher import local_device
from pyengm.training.option_types import Choice, Count, OptionGroup, Pixels, Unset
from pyengm.training.run import as_text
from pyengm.utils.device import pick_device
from pyengm.utils.distributed import on_rank0, rank
from pyengm.utils.import_object import check_trusted, is_object_spec
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.terminal import log

RESERVED = (
    "threats",
    "images",
    "curves",
    "evaluation",
    "robust_overfitting",
    *DETAILS,
)  # names in the results that are no models


@dataclass(frozen=True)
class EvaluateConfig(OptionGroup):
    """Attack a trained model and print its accuracies. Options that are not given are those of the run folder."""

    target: tyro.conf.Positional[Path]
    """A run folder, whose checkpoints best and last are evaluated and which gets the results (RUN/evaluations); a
    checkpoint of pyengm (.safetensors); or the name of a model, whose weights --weights gives: timm:NAME,
    torchvision:NAME, one of pyengm's, your own MODULE:FUNCTION, or robustbench:NAME, which has its own."""
    weights: Annotated[Path | None, Unset("none")] = None
    """File of weights for the name of a model: .pt or .pth of torch.save, or .safetensors."""
    weights_entry: Annotated[str | None, Unset("the only copy, or the one that is no average")] = None
    """Which copy of the weights to take from a file that holds several, such as state_dict_ema."""
    output: Annotated[str | None, Unset("the tensor itself")] = None
    """For models that return more than logits: the key or the position of the logits, such as logits or 0."""
    width: Annotated[int | None, Unset("that of the architecture's paper")] = None
    """For the name of a model: base number of channels."""
    norm_layer: Annotated[str, Choice(("bn", "gn"))] = "bn"
    """For the name of a model: batch norm or group norm."""
    mean: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """For the name of a model, with --std: the model gets pixels as (x - mean) / std. One value per channel."""
    std: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """Standard deviation of each channel; see --mean."""
    data: Annotated[str | None, Unset("that of the training")] = None
    """Data set whose test images are attacked: a name, a folder, or your own MODULE:FUNCTION."""
    data_dir: Annotated[Path | None, Unset("that of the training")] = None
    """Folder in which data sets and decoded images are kept."""
    download: bool = False
    """Download a data set that is missing."""
    image_size: Annotated[int | None, Unset("that of the training, else as they are")] = None
    """Height and width in pixels to which the images of a folder are resized."""
    threat: Annotated[str | None, Choice(THREAT_NORMS), Unset("both")] = None
    """Evaluate under the threat model of this norm only."""
    eps: Annotated[Pixels | None, Unset("that of the training or of the recipe")] = None
    """Radius for --threat in pixel units, such as 8/255."""
    attacks: Annotated[tuple[str, ...], Unset("none")] = ()
    """Further attacks: fgsm, pgd10, pgd50, cw, members of AutoAttack (apgd_ce, apgd_t, fab_t, square), deepfool for
    the mean L2 distance to the decision boundary, or specs, such as pgd:steps=50,loss=ce,norm=linf,eps=1/255..16/255
    (docs/evaluation.md)."""
    autoattack_examples: Annotated[Count | None, Unset("as many as in the run, else all")] = None
    """Number of test images for AutoAttack, spread evenly over the test set."""
    surrogate: Annotated[Path | None, Unset("none")] = None
    """Checkpoint of another model, whose adversarial examples of PGD-20 are tried on the target (a black-box
    attack)."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    out: Annotated[Path | None, Unset("no file")] = None
    """JSON file for the results, which must not exist yet. An interrupted evaluation resumes from a folder beside it
    (OUT.autoattack); that of a run always resumes, from RUN/autoattack."""
    trust_config: bool = False
    """Run functions that a run folder or a checkpoint names as its model or its data (MODULE:FUNCTION). Read them
    before."""


@dataclass(frozen=True)
class _Target:
    """What is evaluated.

    Attributes:
        models: Checkpoints, or sources of models, by the names of their columns.
        threat: The threat model of the training, or of the recipe for the data.
        trained: The options of the training, or of the recipe.
        run: The run folder that gets the results.
    """

    models: dict[str, Path | ModelSource]
    threat: ThreatModel
    trained: TrainConfig
    run: RunFolder | None


def evaluate_command(options: EvaluateConfig) -> int:
    """Attacks the models of the target, prints the table, and writes it to --out and the run folder; returns 0."""
    if options.out is not None and options.out.exists():
        raise ConfigError(f"{options.out} exists and is not overwritten; choose another --out")
    target, test = _find(options)
    if target.trained.machine.cpu_threads is not None:
        torch.set_num_threads(target.trained.machine.cpu_threads)
    threats = _threats(options, test.name, target.threat)
    if options.out is not None:
        make_dirs(options.out.parent)  # an error comes now, not after the evaluation
    run = target.run if target.run is not None and os.access(target.run.path, os.W_OK) else None
    if target.run is not None and run is None and options.out is None:
        log(f"warning: {target.run.path} cannot be written to: the results are not kept; --out FILE keeps them")
    state = run.autoattack if run is not None else options.out and options.out.with_suffix(".autoattack")
    attacks = final_attacks(options.attacks)
    try:
        results = evaluate_with_progress(
            target.models,
            test,
            threats,
            attacks,
            autoattack_examples=options.autoattack_examples or target.trained.evaluation.autoattack_examples,
            surrogate=options.surrogate,
            state=state,
            seed=options.seed,
            device=local_device(pick_device(options.device)),
            trust_config=options.trust_config,
        )
    except KeyboardInterrupt:
        again = "interrupted" if state is None else "interrupted; the same command resumes where it stopped"
        raise Interrupted(again) from None
    table = evaluation_tables(results, str(options.target))
    log(table)
    results["evaluation"] = _description(options, test, attacks)
    if options.out is not None and rank() == 0:
        atomic_write(options.out, lambda path: path.write_text(_as_json(results)))
    if run is not None:
        log(f"results: {on_rank0(lambda: run.add_evaluation(results, as_text(table)))}")
    return 0


def _find(options: EvaluateConfig) -> tuple[_Target, ImageDataset]:
    """The models of the target and the images to attack. Raises ConfigError, CheckpointError or DataError."""
    if options.target.is_dir():
        run = RunFolder.open(options.target)
        _refuse_options_of_names(options)
        info = read_info(run.best)
        trained = TrainConfig.load(run.config)
        threat = ThreatModel(info.norm, info.eps)
        target = _Target({"best": run.best, "last": run.last}, threat, trained, run)
        return target, _load(options, info.data, trained)
    if options.target.is_file():
        _refuse_options_of_names(options)
        info = read_info(options.target)
        trained = _options_beside(options.target) or _recipe_options(info.data)
        target = _Target({_column(options.target): options.target}, ThreatModel(info.norm, info.eps), trained, None)
        return target, _load(options, info.data, trained)
    return _find_named(options)


def _options_beside(checkpoint: Path) -> TrainConfig | None:
    """The options of the run whose best or last weights a file in its folder is; None for other files."""
    run = RunFolder(checkpoint.parent)
    is_of_run = checkpoint.name in (run.best.name, run.last.name) and run.config.is_file()
    return TrainConfig.load(run.config) if is_of_run else None


def _recipe_options(data: str) -> TrainConfig:
    """The options of the recipe for data, of which short runs alone take fewer images for AutoAttack."""
    return TrainConfig.from_flat(data=data).resolve().override(autoattack_examples=None)


def _find_named(options: EvaluateConfig) -> tuple[_Target, ImageDataset]:
    """A model by its name, for data that must be given."""
    name = str(options.target)
    if options.data is None:
        raise ConfigError(
            f"there is no checkpoint {name}, nor a run folder; if it is the name of a model, give --data, and "
            "--weights unless it has its own"
        )
    trained = _recipe_options(options.data)
    data = _load(options, None, trained)
    root = options.data_dir or trained.data.data_dir
    source = find_source(
        options.target, data, **_options_of(options), trust_config=options.trust_config, norm=options.threat, root=root
    )
    threat = ThreatModel(trained.attack.threat, trained.attack.eps)
    return _Target({_column(options.weights or name.rpartition(":")[2]): source}, threat, trained, None), data


def _options_of(options: EvaluateConfig) -> dict[str, Any]:
    """The options of a model by name, as `find_source` takes them."""
    output = options.output
    given = {"width": options.width, "mean": options.mean, "std": options.std}
    model_options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.norm_layer != "bn":
        model_options["norm_layer"] = options.norm_layer
    return {
        "weights": options.weights,
        "entry": options.weights_entry,
        "output": int(output) if output is not None and output.lstrip("-").isdigit() else output,
        "model_options": model_options,
    }


def _refuse_options_of_names(options: EvaluateConfig) -> None:
    given = _options_of(options)
    flags = {"weights": "--weights", "entry": "--weights-entry", "output": "--output"}
    unused = [flag for name, flag in flags.items() if given[name] is not None]
    unused += [f"--{name.replace('_', '-')}" for name in given["model_options"]]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} would have no effect: {options.target} describes its own model; these options "
            "are for the name of a model, as in pyengm evaluate MODEL --weights FILE"
        )


def _column(name: Path | str) -> str:
    """The name of the results of a model: that of its file without the suffix, or its own."""
    stem = Path(name).stem
    return f"model {stem}" if stem in RESERVED else stem


def _load(options: EvaluateConfig, trained_on: str | None, trained: TrainConfig) -> ImageDataset:
    """The test images of --data, else those of the training."""
    if options.data is None and is_object_spec(trained_on):
        check_trusted({"data": trained_on}, options.target, options.trust_config)
    return load(
        options.data or str(trained_on),
        "test",
        root=options.data_dir or trained.data.data_dir,
        download=options.download,
        image_size=options.image_size or trained.data.image_size,
    )


def _threats(options: EvaluateConfig, data: str, trained: ThreatModel) -> list[ThreatModel]:
    threats = default_threats(data, trained)
    if options.threat is not None:
        known = {threat.norm: threat.eps for threat in threats}
        return [ThreatModel(options.threat, known.get(options.threat, 0.0) if options.eps is None else options.eps)]
    if options.eps is not None:
        raise ConfigError("--eps needs --threat linf or --threat l2, the threat model that it belongs to")
    return threats


def _description(options: EvaluateConfig, test: ImageDataset, attacks: list[str]) -> dict[str, Any]:
    """What was evaluated, for the file of the results."""
    given = {"weights": options.weights, "weights_entry": options.weights_entry, "surrogate": options.surrogate}
    return {
        "target": str(options.target),
        "data": test.name,
        "attacks": attacks,
        "seed": options.seed,
        **{name: str(value) for name, value in given.items() if value is not None},
    }


def _as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2) + "\n"
