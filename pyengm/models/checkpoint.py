"""Weights on disk: a safetensors file that describes its model in the header, and files made elsewhere."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from pyengm.errors import CheckpointError, ConfigError
from pyengm.models.match_weights import match_weights
from pyengm.models.registry import build, code_of
from pyengm.models.weights_file import is_torch_file, read_weights
from pyengm.utils.import_object import check_trusted
from pyengm.utils.io import atomic_write, sha256_of_tensors


@dataclass(frozen=True)
class CheckpointInfo:
    """The model that weights belong to, and its training.

    Args:
        model: the arguments of `pyengm.models.build`.
        data: the data set of the training.
        classes: the names of its classes.
        norm: the norm of the threat model of the training, "linf" or "l2".
        eps: the radius of that threat model, in units of pixels in [0, 1].
        epoch: the last epoch of the training, counted from 0.
    """

    model: dict[str, Any]
    data: str
    classes: tuple[str, ...]
    norm: str
    eps: float
    epoch: int


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Writes a model's weights and buffers, whole or not at all, with `info` and a SHA-256 in the file's header.

    Args:
        path: the safetensors file.
        model: the model.
        info: its description.

    Raises:
        StorageError: the disk is full or cannot be written to; the old file is whole then.
    """
    tensors = _without_duplicates(model.state_dict())
    header = asdict(info) | {"sha256": sha256_of_tensors(tensors)}
    metadata = {"pyengm": json.dumps(header)}  # one entry: safetensors writes several in any order
    atomic_write(path, lambda temporary: save_file(tensors, str(temporary), metadata))


def load_checkpoint(path: Path, *, trust_config: bool = False) -> tuple[nn.Module, CheckpointInfo]:
    """Loads a checkpoint.

    Args:
        path: a file that `save_checkpoint` wrote.
        trust_config: whether a function that the file names as its model (MODULE:FUNCTION) may be run.

    Returns:
        The model on the CPU, in eval mode, and its description.

    Raises:
        CheckpointError: the file is missing, damaged or not pyengm's, or its model cannot be built here.
        ConfigError: the file names code, and `trust_config` is False.
    """
    info = read_info(path)
    check_trusted({"model": code_of(info.model.get("name"))}, path, trust_config)
    try:
        model = build(**info.model)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} names a model that cannot be built here: {error}") from error
    return load_weights(model, path).eval(), info


def read_info(path: Path) -> CheckpointInfo:
    """Reads the header of a checkpoint.

    Args:
        path: a file that `save_checkpoint` wrote.

    Returns:
        The description of its model.

    Raises:
        CheckpointError: the file is missing, damaged or not pyengm's.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    header = _read_header(path)
    try:
        values: dict[str, Any] = {field.name: header[field.name] for field in fields(CheckpointInfo)}
        values["classes"] = tuple(values["classes"])
        return CheckpointInfo(**values)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no description of its model: name the model and give the file as its weights, as in pyengm "
            f"evaluate MODEL --weights {path}; in Python pyengm.models.load_weights(model, path)"
        ) from error


def load_weights(model: nn.Module, path: str | os.PathLike, *, entry: str | None = None) -> nn.Module:
    """Loads a file of weights, of pyengm or made elsewhere, into a model. No code of the file is run.

    Args:
        model: changed in place.
        path: a safetensors file, or one that torch.save wrote. The names in it may have the prefixes of wrappers, and
            the weights may be an entry of it, see `match_weights`. Only files of pyengm have a SHA-256 that is checked.
        entry: the copy of the weights to take where the file holds several, such as "state_dict_ema".

    Returns:
        The model.

    Raises:
        CheckpointError: the file is damaged, holds objects that could run code, or is of another architecture; the
            model is unchanged then.
    """
    path = Path(path)
    content = read_weights(path)
    expected = _read_header(path).get("sha256")
    if expected is not None and sha256_of_tensors(content) != expected:
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    weights = match_weights(model, content, str(path), entry)
    check_state(model, weights, str(path))
    model.load_state_dict(weights, strict=False)  # names that share one tensor are in the file once
    return model


def check_state(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Checks that a state has the names and shapes of a model's parameters and buffers.

    Args:
        model: the model.
        state: tensors by name, where names that share one tensor may appear once.
        source: where the state comes from, for the message.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = model.state_dict()
    found = {own[name].data_ptr() for name in state if name in own}
    problems = [f"{name} is missing" for name, t in own.items() if name not in state and t.data_ptr() not in found]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model's has {tuple(t.shape)}"
        for name, t in own.items()
        if name in state and state[name].shape != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} belongs to another architecture: {'; '.join(problems[:3])}{more}")


def _without_duplicates(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, each once where several names share one."""
    tensors, seen = {}, set()
    for name, tensor in state.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or memory not in seen:
            tensors[name] = tensor.contiguous()
        seen.add(memory)
    return tensors


def _read_header(path: Path) -> dict[str, Any]:
    """The entry of `save_checkpoint` in the header, {} in a file of another origin."""
    if is_torch_file(path):
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        return dict(json.loads(metadata.get("pyengm", "{}")))
    except (TypeError, ValueError):
        return {}
