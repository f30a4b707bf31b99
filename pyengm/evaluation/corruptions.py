"""Common corruptions (Hendrycks & Dietterich 2019): accuracies on images that noise, blur or weather has spoiled."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyengm.attacks.logits import Model
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError
from pyengm.evaluation.accuracy import accuracy

LIBRARY = "imagecorruptions"  # in place of a folder: the corruptions are made from the test images
PACKAGE = "imagecorruptions-imaug"  # the one of that module that runs with a scikit-image of today
SEEDED = ("impulse_noise", "glass_blur")  # the others draw from numpy's generator
LABELS = "labels.npy"
SEVERITIES = 5


def evaluate_corruptions(
    model: Model, source: Path, data: ImageDataset, *, device: torch.device, seed: int = 0
) -> dict[str, list[float]]:
    """Accuracies on corrupted images.

    Args:
        model: classifier of images in [0, 1], on `device`.
        source: a folder in the layout of CIFAR-10-C: CORRUPTION.npy, (5 n, h, w, c) uint8 with the severities 1 to 5
            one after another, and labels.npy, (5 n,) or (n,); or "imagecorruptions", by which `data` is corrupted.
        data: the clean images; for a folder only their classes and size count.
        device: device of the model.
        seed: seed of the random numbers of the library.

    Returns:
        Five accuracies in [0, 1] by corruption, from severity 1 to 5.

    Raises:
        DataError: the folder has another layout, or images of another size.
        ConfigError: the library is not installed, or the images are too small for it.

    References:
        Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations";
        Michaelis et al. 2019 (imagecorruptions); `pip install imagecorruptions-imaug`.
    """
    sets = _from_library(data, seed) if str(source) == LIBRARY else _from_folder(source, data)
    return {
        name: [accuracy(model, one, None, seed=seed, device=device) for one in severities] for name, severities in sets
    }


def mean_accuracy(accuracies: Mapping[str, list[float]]) -> float:
    """The mean over all corruptions and severities, as RobustBench ranks models."""
    return float(np.mean([value for values in accuracies.values() for value in values]))


def _from_folder(folder: Path, data: ImageDataset) -> Iterator[tuple[str, list[ImageDataset]]]:
    files = sorted(path for path in folder.glob("*.npy") if path.name != LABELS) if folder.is_dir() else []
    if not files or not (folder / LABELS).is_file():
        raise DataError(f"{folder} does not have the layout of CIFAR-10-C: expected CORRUPTION.npy files and {LABELS}")
    labels = _load(folder / LABELS)
    for path in files:
        images = _load(path)
        expected = (*data.shape[1:], data.shape[0])
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8 or len(images) % SEVERITIES:
            shape = f"(5 n, {', '.join(map(str, expected))})"
            raise DataError(f"{path}: expected uint8 images {shape}, got {images.dtype} {images.shape}")
        n = len(images) // SEVERITIES
        if len(labels) not in (n, len(images)):
            raise DataError(f"{folder / LABELS}: expected {n} or {len(images)} labels, got {len(labels)}")
        parts = [slice(k * n, (k + 1) * n) for k in range(SEVERITIES)]
        yield (
            path.stem,
            [
                _dataset(images[part], labels[part] if len(labels) == len(images) else labels, data, path.stem)
                for part in parts
            ],
        )


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _dataset(images: np.ndarray, labels: Any, data: ImageDataset, name: str) -> ImageDataset:
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(pixels, torch.as_tensor(np.array(labels)).long(), data.classes, name, "test")


def _from_library(data: ImageDataset, seed: int) -> Iterator[tuple[str, list[ImageDataset]]]:
    try:
        imagecorruptions = import_module(LIBRARY)
    except ImportError as error:
        raise ConfigError(f"pip install {PACKAGE}, which corrupts the images, or give a folder") from error
    if min(data.shape[1:]) < 32 or data.shape[0] not in (1, 3):
        shape = "x".join(map(str, data.shape))
        raise ConfigError(f"{LIBRARY} takes grey or coloured images of 32 pixels and more; got {shape}")
    for name in imagecorruptions.get_corruption_names():
        yield name, [_corrupted(imagecorruptions.corrupt, data, name, k + 1, seed) for k in range(SEVERITIES)]


def _corrupted(corrupt: Any, data: ImageDataset, name: str, severity: int, seed: int) -> ImageDataset:
    state = np.random.get_state()  # noqa: NPY002  # the library draws from numpy's own generator
    try:
        pixels = []
        for image, index in zip(_as_uint8(data), data.index.tolist(), strict=True):
            own = (seed * 1_000_003 + index) % 2**32
            np.random.seed(own)  # noqa: NPY002
            options = {"seed": own} if name in SEEDED else {}
            spoiled = corrupt(image, corruption_name=name, severity=severity, **options)
            pixels.append(spoiled if spoiled.ndim == 3 else spoiled[..., None])
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return _dataset(np.stack(pixels)[..., : data.shape[0]], data.labels.numpy(), data, name)


def _as_uint8(data: ImageDataset) -> Iterator[np.ndarray]:
    """The images, (h, w, 3) uint8 each."""
    for rows in torch.arange(len(data)).split(256):
        images: Tensor = torch.as_tensor(data.images[rows])
        if images.is_floating_point():
            images = (images * 255).round().to(torch.uint8)
        yield from images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
