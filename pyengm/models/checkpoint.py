"""Weights on disk: a safetensors file that says which model it belongs to, written whole or not at all."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from pyengm.errors import CheckpointError, ConfigError
from pyengm.models.registry import build


@dataclass(frozen=True)
class CheckpointInfo:
    """What the weights belong to.

    model: the arguments of pyengm.models.build. data, classes: what it was trained on. norm, eps: the threat model of
    its training. epoch: the last one that it has seen, counted from 0.
    """

    model: dict[str, Any]
    data: str
    classes: tuple[str, ...]
    norm: str
    eps: float
    epoch: int


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary path) and moves the result into place: a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Writes the model's weights and buffers with `info` in the file's header."""
    metadata = {"pyengm": json.dumps(asdict(info))}
    write_atomically(path, lambda temporary: save_model(model, str(temporary), metadata))


def load_checkpoint(path: Path) -> tuple[nn.Module, CheckpointInfo]:
    """The model of a checkpoint on the CPU, in eval mode, and what it belongs to.

    Raises CheckpointError for a file that is missing, damaged or not pyengm's.
    """
    info = read_info(path)
    try:
        model = build(**info.model)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} names a model that cannot be built here: {error}") from error
    return load_weights(model, path).eval(), info


def read_info(path: Path) -> CheckpointInfo:
    """The header of a checkpoint. Raises CheckpointError as `load_checkpoint` does."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        fields = json.loads(metadata["pyengm"])
        return CheckpointInfo(**{**fields, "classes": tuple(fields["classes"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no description of its model; load its weights into a model of yours with "
            "pyengm.models.load_weights(model, path)"
        ) from error


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Loads a safetensors file into a model, all names and shapes alike; returns the model.

    Raises CheckpointError for a damaged file or one of another architecture; the model is unchanged then.
    """
    try:
        weights = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    check_state(model, weights, str(path))
    model.load_state_dict(weights, strict=False)  # names that share one tensor are stored once
    return model


def check_state(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Raises CheckpointError unless `state` has the names and shapes of the model's parameters and buffers."""
    own = model.state_dict()
    stored = {own[name].data_ptr() for name in state if name in own}
    problems = [f"{name} is missing" for name, t in own.items() if name not in state and t.data_ptr() not in stored]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model's has {tuple(t.shape)}"
        for name, t in own.items()
        if name in state and state[name].shape != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} belongs to another architecture: {'; '.join(problems[:3])}{more}")
