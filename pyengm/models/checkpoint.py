"""Weights on disk: a safetensors file that says which model it belongs to, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyengm.errors import CheckpointError, ConfigError, StorageError
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
    """Calls write(temporary path) and moves the result into place: a crash leaves the old file or the new one.

    Raises StorageError where the disk is full or cannot be written to; the old file is whole then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # that of any new file, where `write` makes one that only its owner may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are not there. Raises StorageError where that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error}") from error


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Writes the model's weights and buffers, with `info` and their digest in the file's header.

    Raises StorageError as `write_atomically` does.
    """
    tensors = stored(model)
    header = asdict(info) | {"sha256": digest_of(tensors)}
    metadata = {"pyengm": json.dumps(header)}  # one entry: safetensors writes several in any order
    write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the model as they go into a file: contiguous, and once where several names share one."""
    tensors, places = {}, set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in places:
            tensors[name] = tensor.contiguous()
        places.add(place)
    return tensors


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
    header = _header(path)
    try:
        return CheckpointInfo(
            **{f.name: header[f.name] for f in fields(CheckpointInfo)} | {"classes": tuple(header["classes"])}
        )
    except (KeyError, TypeError) as error:
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
    if _header(path).get("sha256", digest := digest_of(weights)) != digest:
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    model.load_state_dict(weights, strict=False)  # names that share one tensor are stored once
    return model


def _header(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` noted, {} in a file of somebody else's."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        return dict(json.loads(metadata.get("pyengm", "{}")))
    except (TypeError, ValueError):
        return {}


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
