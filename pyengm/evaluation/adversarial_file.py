"""Files of adversarial images: those that attacks found on one model, to be tried on others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyengm.data import ImageDataset
from pyengm.errors import DataError
from pyengm.utils.io import atomic_write, make_dirs

FORMAT = "pyengm adversarial images 1"


@dataclass(frozen=True, eq=False)
class AdversarialImages:
    """What one attack made of N images.

    Args:
        attack: its name or spec.
        norm: the norm of its threat model.
        eps: the radius, in pixel units.
        images: (N, c, h, w) float32 in [0, 1]; those on which the attack failed are its last candidates.
        correct: (N,) bool, whether the attacked model classifies each correctly.
    """

    attack: str
    norm: str
    eps: float
    images: Tensor
    correct: Tensor


def save_adversarial(
    path: Path, found: Sequence[AdversarialImages], data: ImageDataset, about: dict[str, Any] | None = None
) -> None:
    """Writes adversarial images as a safetensors file.

    Tensors: labels (N,), index (N,), and for the attack of number k images.k and correct.k. The metadata has under
    "pyengm", as JSON, the format, the attacks with their threat models, the data set, its classes, and `about`.

    Args:
        path: the file.
        found: what attacks made of the images, all N of them.
        data: the N images.
        about: further JSON values, such as the model.

    Raises:
        StorageError: the file cannot be written.
    """
    attacks = [{"attack": one.attack, "norm": one.norm, "eps": one.eps} for one in found]
    described = {"format": FORMAT, "attacks": attacks, "data": data.name, "split": data.split}
    described |= {"classes": list(data.classes), **(about or {})}
    tensors = {"labels": data.labels.contiguous(), "index": data.index.contiguous()}
    for k, one in enumerate(found):
        tensors |= {f"images.{k}": one.images.float().contiguous(), f"correct.{k}": one.correct.contiguous()}
    make_dirs(path.parent)
    atomic_write(path, partial(save_file, tensors, metadata={"pyengm": json.dumps(described)}))


def load_adversarial(path: Path) -> tuple[list[AdversarialImages], list[ImageDataset], dict[str, Any]]:
    """Reads a file of `save_adversarial`.

    Args:
        path: the file.

    Returns:
        What each attack found; for each the data set of its images with the true labels; and the description.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["pyengm"])
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            labels, index = file.get_tensor("labels"), file.get_tensor("index")
            found = [
                AdversarialImages(**one, images=file.get_tensor(f"images.{k}"), correct=file.get_tensor(f"correct.{k}"))
                for k, one in enumerate(about["attacks"])
            ]
        sets = [
            ImageDataset(one.images, labels, about["classes"], about["data"], about["split"], index) for one in found
        ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no file of adversarial images: {error}; expected one that --save-adversarial wrote"
        ) from error
    return found, sets, about


def fooled_by_any(found: Sequence[AdversarialImages]) -> Tensor:
    """(N,) bool: whether any of the attacks, on the same N images, fooled the model."""
    return ~torch.stack([one.correct for one in found]).all(0)
