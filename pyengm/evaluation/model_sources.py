"""Where the model of an evaluation comes from: a checkpoint of pyengm, a name with weights, or RobustBench's zoo.

A source is a few plain values, from which every process of an evaluation loads the model anew.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.errors import CheckpointError, ConfigError, DataError
from pyengm.models import (
    ZOO,
    CheckpointInfo,
    Output,
    build,
    code_of,
    load_checkpoint,
    load_from_robustbench,
    load_weights,
    read_info,
)

BEST = "best.safetensors"  # of a run folder
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


class ModelSource(Protocol):
    """A model that can be loaded."""

    def load(self) -> nn.Module:
        """The model on the CPU, in eval mode. Raises CheckpointError or ConfigError where it cannot be loaded."""
        ...

    def check(self, data: ImageDataset) -> None:
        """Checks that model and data fit, as far as that is known before the model is loaded. Raises DataError."""
        ...

    def threats(self) -> list[ThreatModel]:
        """The threat model of its training; none where it is unknown."""
        ...

    def identity(self) -> str:
        """A digest of all that decides the model."""
        ...


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of pyengm.

    Args:
        path: the file.
        trust_config: as for `load_checkpoint`.
    """

    path: Path
    trust_config: bool = False

    def load(self) -> nn.Module:
        return load_checkpoint(self.path, trust_config=self.trust_config)[0]

    def check(self, data: ImageDataset) -> None:
        check_matches_data(read_info(self.path), data, self.path)

    def threats(self) -> list[ThreatModel]:
        info = read_info(self.path)
        return [ThreatModel(info.norm, info.eps)]

    def identity(self) -> str:
        return digest_of(self.path)


@dataclass(frozen=True)
class NamedSource:
    """A model by its name, with a file of weights.

    Args:
        options: arguments of `build`.
        weights: the file; None for functions of the user, which may load weights themselves.
        entry: as for `load_weights`.
        output: as for `Classifier`.
    """

    options: Mapping[str, Any]
    weights: Path | None
    entry: str | None = None
    output: Output | None = None

    def load(self) -> nn.Module:
        model = build(**self.options, output=self.output)
        if self.weights is not None:
            load_weights(model, self.weights, entry=self.entry)
        return model.eval()

    def check(self, data: ImageDataset) -> None:
        """The model is built for the data."""

    def threats(self) -> list[ThreatModel]:
        return []

    def identity(self) -> str:
        return f"{sorted(self.options.items())} {self.weights and digest_of(self.weights)} {self.entry} {self.output}"


@dataclass(frozen=True)
class ZooSource:
    """A model of RobustBench's zoo; arguments as for `load_from_robustbench`."""

    name: str
    dataset: str
    norm: str
    root: Path

    def load(self) -> nn.Module:
        return load_from_robustbench(self.name, self.dataset, self.norm, self.root)

    def check(self, data: ImageDataset) -> None:
        """The zoo is asked for a model for the data."""

    def threats(self) -> list[ThreatModel]:
        return []

    def identity(self) -> str:
        return repr(self)


def find_source(
    target: str | os.PathLike,
    data: ImageDataset,
    *,
    weights: str | os.PathLike | None = None,
    entry: str | None = None,
    output: Output | None = None,
    model_options: Mapping[str, Any] | None = None,
    trust_config: bool = False,
    norm: str | None = None,
    root: Path | None = None,
) -> ModelSource:
    """Finds out what names a model.

    Args:
        target: a run folder, whose best weights are taken; a checkpoint of pyengm; or a name of `pyengm.models.build`:
            one of ours, timm:NAME, torchvision:NAME, or MODULE:FUNCTION; or robustbench:NAME.
        data: the images of the evaluation, whose classes, channels and size the model of a name gets.
        weights: the file of weights of a name.
        entry: as for `load_weights`.
        output: as for `Classifier`.
        model_options: further arguments of `build`.
        trust_config: as for `load_checkpoint`.
        norm: the norm of the threat model, for the zoo.
        root: the folder of downloads, for the zoo; None for ~/.cache/pyengm.

    Raises:
        ConfigError: options are missing or have no effect.
        CheckpointError: there is no such file.
    """
    name, path = str(target), Path(target).expanduser()
    is_file = path.is_file() or path.is_dir()
    given = {"weights": weights, "entry": entry, "output": output, "model_options": model_options or None}
    if is_file or path.suffix in SUFFIXES:
        if not is_file:
            raise CheckpointError(f"there is no checkpoint {path}")
        _refuse({**given, "output": None}, f"{path} describes its own model")
        return CheckpointSource(path / BEST if path.is_dir() else path, trust_config)
    if name.partition(":")[0] == ZOO:
        _refuse(given, f"{name} has its own weights")
        folder = Path(root or "~/.cache/pyengm").expanduser() / ZOO
        return ZooSource(name.partition(":")[2], data.name, norm or "linf", folder)
    if weights is None and code_of(name) is None:
        build(**_build_options(name, data, model_options))  # an unknown name is an error of its own
        raise ConfigError(f"{name} alone has random weights: give its weights, --weights FILE (in Python weights=)")
    options = _build_options(name, data, model_options)
    return NamedSource(options, None if weights is None else Path(weights), entry, output)


def _build_options(name: str, data: ImageDataset, further: Mapping[str, Any] | None) -> dict[str, Any]:
    options = {"name": name, "num_classes": data.num_classes, "in_channels": data.channels}
    return {**options, "image_size": data.image_size, **(further or {})}


def _refuse(given: Mapping[str, Any], reason: str) -> None:
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        raise ConfigError(f"{', '.join(unused)} would have no effect: {reason}")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file. Raises CheckpointError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"there is no checkpoint {path}: {error.strerror}") from error


def check_matches_data(info: CheckpointInfo, data: ImageDataset, path: Path) -> None:
    """Checks that the model of a checkpoint and a data set have the same image shape and number of classes.

    Raises:
        DataError: they have not.
    """
    model = info.model
    expected = (model["num_classes"], model["in_channels"], model["image_size"], model["image_size"])
    if expected != (data.num_classes, *data.shape):
        raise DataError(
            f"{path} was trained on {info.data}: {expected[0]} classes, images of shape {expected[1:]}; "
            f"{data.name} has {data.num_classes} classes, images of shape {data.shape}"
        )
