"""What `pyengm evaluate` attacks: the models, the images and the threat models that its options name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengm.attacks import ThreatModel
from pyengm.cli.evaluate_options import EvaluateConfig
from pyengm.data import ImageDataset, load
from pyengm.errors import ConfigError
from pyengm.evaluation import DETAILS, FURTHER, ModelSource, find_source
from pyengm.models import read_info
from pyengm.training import RunFolder, TrainConfig
from pyengm.training.builders import read_indices
from pyengm.training.config import default_threats
from pyengm.utils.import_object import check_trusted, is_object_spec

RESERVED = (
    "threats",
    "images",
    "curves",
    "evaluation",
    "robust_overfitting",
    *DETAILS,
    *FURTHER,
)  # names in the results that are no models


@dataclass(frozen=True)
class Target:
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


def find_target(options: EvaluateConfig) -> tuple[Target, ImageDataset]:
    """The models of the target and the images to attack. Raises ConfigError, CheckpointError or DataError."""
    if options.target.is_dir():
        run = RunFolder.open(options.target)
        _refuse_options_of_names(options)
        info = read_info(run.best)
        trained = TrainConfig.load(run.config)
        threat = ThreatModel(info.norm, info.eps)
        target = Target({"best": run.best, "last": run.last}, threat, trained, run)
        return target, _load(options, info.data, trained)
    if options.target.is_file():
        _refuse_options_of_names(options)
        info = read_info(options.target)
        trained = _options_beside(options.target) or _recipe_options(info.data)
        target = Target({_column(options.target): options.target}, ThreatModel(info.norm, info.eps), trained, None)
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


def _find_named(options: EvaluateConfig) -> tuple[Target, ImageDataset]:
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
    return Target({_column(options.weights or name.rpartition(":")[2]): source}, threat, trained, None), data


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
    """The images of --data, else of the data set of the training, that --split and --indices name."""
    if options.data is None and is_object_spec(trained_on):
        check_trusted({"data": trained_on}, options.target, options.trust_config)
    return load(
        options.data or str(trained_on),
        options.split,
        root=options.data_dir or trained.data.data_dir,
        download=options.download,
        image_size=options.image_size or trained.data.image_size,
        indices=None if options.indices is None else read_indices(options.indices),
    )


def threats_of(options: EvaluateConfig, data: str, trained: ThreatModel) -> list[ThreatModel]:
    threats = default_threats(data, trained)
    if options.threat is not None:
        known = {threat.norm: threat.eps for threat in threats}
        return [ThreatModel(options.threat, known.get(options.threat, 0.0) if options.eps is None else options.eps)]
    if options.eps is not None:
        raise ConfigError("--eps needs --threat linf or --threat l2, the threat model that it belongs to")
    return threats
