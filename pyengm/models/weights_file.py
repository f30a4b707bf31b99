"""Files of weights: what is in them, and reading them without running code."""

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyengm.errors import CheckpointError

SAVE = "torch.save(model.state_dict(), FILE)"
# Plain values that training scripts save beside the weights; making them runs no code of the file.
SAFE = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
SAFE.append((np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"))
SAFE.append((np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"))


def read_weights(path: Path) -> Mapping[str, Any]:
    """Reads a safetensors file, or what torch.save wrote of plain values and tensors.

    Args:
        path: the file; its kind is known from its first bytes.

    Returns:
        Tensors on the CPU by name, and, in files of torch.save, mappings of those and other values.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds objects that could run code.
    """
    if is_torch_file(path):
        return _read_torch(path)
    head = _first_bytes(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    raise CheckpointError(
        f"{path} is damaged or no safetensors file, nor one of torch.save: it begins with {head[:12]!r}"
    )


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as one of torch.save does. Raises CheckpointError for a missing file."""
    head = _first_bytes(path)
    return head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:9] != b"{")


def state_dicts(content: Mapping[Any, Any], name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The mappings of names to tensors at any depth of a file, by the keys that lead to them, such as "state_dict"."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from state_dicts(value, f"{name}.{key}" if name else key)


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(str(error))}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path} {_refusal(str(error))}") from error
        raise CheckpointError(f"{path} is damaged: torch cannot read it ({_first_line(error)})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no weights by name; save them with {SAVE}")
    return content


def _refusal(message: str) -> str:
    """Why torch does not load a file with weights_only, and what to do."""
    if "TorchScript" in message:
        return "is a TorchScript archive, which is a program; in Python, evaluate torch.jit.load(FILE)"
    found = re.search(r"(?:GLOBAL|global|class) ([\w.]+) (?:was not|whose)", message)
    if found is None:
        reasons = [line for line in message.splitlines() if "Unpickler" in line or "Trying" in line] or ["no pickle"]
        return f"is damaged: torch cannot read it ({reasons[0].strip()})"
    return (
        f"holds a Python object, {found.group(1)}, whose loading could run code; save its weights alone where you "
        f"trust it: {SAVE}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
