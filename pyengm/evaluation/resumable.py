"""Values of every image, computed batch by batch, from which an interrupted evaluation resumes."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset, Loader
from pyengm.data.loader import Batch
from pyengm.errors import CheckpointError
from pyengm.evaluation.hashes import hash_of_images, hash_of_model
from pyengm.utils.distributed import rank, world_size
from pyengm.utils.io import atomic_write, make_dirs

SECONDS = 5.0  # between two writes, so that fast attacks do not wait for the disk


@dataclass(frozen=True)
class Resumable:
    """Where the values of an evaluation of one model on one data set are kept.

    Args:
        folder: the folder of the files, which may be shared by many evaluations.
        identity: what all values depend on, as JSON values.
    """

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def of(cls, folder: Path | None, model: nn.Module, data: ImageDataset) -> "Resumable | None":
        """For a model and all images, of which a process may attack a share; None where nothing is kept."""
        if folder is None:
            return None
        shared = {"model": hash_of_model(model), "images": hash_of_images(data), "share": [rank(), world_size()]}
        return cls(folder, shared)

    def run(self, **further: Any) -> "SavedBatches":
        """The file of values that depend on `further` as well, JSON values."""
        return SavedBatches(self.folder, {**self.identity, **further})


class SavedBatches:
    """The file of the values of one attack.

    Args:
        folder: the folder of the file.
        identity: all that the values depend on, as JSON values; the file's name is a digest of it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.identity = json.dumps(identity, sort_keys=True)
        self.path = Path(folder) / f"{hashlib.sha256(self.identity.encode()).hexdigest()[:20]}.safetensors"
        self._written = time.monotonic()

    def load(self) -> list[Tensor]:
        """The values of the batches so far. Raises CheckpointError where the file is damaged."""
        if not self.path.exists():
            return []
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self.identity:
                    raise ValueError("the file belongs to other values")
                return [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged; remove it, and its images are attacked anew") from error

    def save(self, parts: list[Tensor], *, last: bool) -> None:
        """Writes the values atomically, unless the last write is SECONDS ago at most. Raises StorageError."""
        if not last and time.monotonic() - self._written < SECONDS:
            return
        make_dirs(self.path.parent)
        tensors = {str(i): part.contiguous() for i, part in enumerate(parts)}
        atomic_write(self.path, partial(save_file, tensors, metadata={"identity": self.identity}))
        self._written = time.monotonic()


def compute_batches(
    loader: Loader,
    compute: Callable[[Batch], Tensor],
    saved: SavedBatches | None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Computes values of all images.

    Args:
        loader: the batches, always the same ones.
        compute: the values (n, ...) of a batch, on the CPU.
        saved: where the values are kept; None: nowhere.
        on_batch: called after each batch with the number of images done and their total number.

    Returns:
        (N, ...) the values.

    Raises:
        CheckpointError: the file is damaged.
        StorageError: the file cannot be written.
    """
    parts = [] if saved is None else saved.load()
    try:
        for batch in loader.epoch(0, start=len(parts)):
            parts.append(compute(batch))
            if saved is not None:
                saved.save(parts, last=len(parts) == len(loader))
            on_batch(sum(map(len, parts)), len(loader.data))
    except KeyboardInterrupt:
        if saved is not None and parts:
            saved.save(parts, last=True)
        raise
    return torch.cat(parts)


def settings_of(attack: Any) -> Any:
    """All that the results of an attack depend on, besides the model and the images, as JSON values."""
    if attack is None or isinstance(attack, (bool, int, float, str)):
        return attack
    if isinstance(attack, (list, tuple)):
        return [settings_of(part) for part in attack]
    if isinstance(attack, ThreatModel):
        return [attack.norm, attack.eps]
    if isinstance(attack, nn.Module):
        return hash_of_model(attack)
    if callable(attack) and hasattr(attack, "__qualname__"):
        return f"{attack.__module__}.{attack.__qualname__}"
    return [type(attack).__qualname__, {name: settings_of(value) for name, value in sorted(vars(attack).items())}]
