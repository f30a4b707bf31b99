"""Digests of models and images, by which the files of interrupted evaluations are found."""

import hashlib

import torch
from torch import Tensor, nn

from pyengm.data import ImageDataset
from pyengm.errors import ConfigError


def hash_of_model(model: nn.Module) -> str:
    """Of the types of its modules, and of its parameters and buffers.

    Raises:
        ConfigError: the model has none of these, as a plain function, so that it could be any model.
    """
    if not model.state_dict():
        raise ConfigError(
            "an evaluation with state= resumes for models that are told apart by their weights, and this one has none; "
            "leave state out, or pass the torch.nn.Module itself"
        )
    digest = hashlib.sha256(repr([(name, type(module).__name__) for name, module in model.named_modules()]).encode())
    for name, t in model.state_dict().items():
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(_bytes_of(t.detach().cpu()))
    return digest.hexdigest()


def hash_of_images(data: ImageDataset) -> str:
    """Of images, labels and indices."""
    digest = hashlib.sha256(repr((tuple(data.images.shape), str(data.images.dtype))).encode())
    digest.update(_bytes_of(data.labels))
    digest.update(_bytes_of(data.index))
    for rows in torch.arange(len(data)).split(1024):
        digest.update(_bytes_of(data.images[rows]))
    return digest.hexdigest()


def _bytes_of(t: Tensor) -> bytes:
    return t.contiguous().flatten().view(torch.uint8).numpy().tobytes()
