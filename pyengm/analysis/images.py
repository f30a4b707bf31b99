"""The models and the images of an analysis, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyengm.attacks.keyed import run_attack
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.model_state import running_statistics_kept
from pyengm.errors import ConfigError, DataError
from pyengm.ops import Key

Models = nn.Module | Iterable[tuple[int, nn.Module]]
"""One model, or models along a run with the number of epochs before each; an iterator may load them one at a time."""
Attack = Callable[..., Tensor]
"""Called as attack(model, x, y), and with key= where it has the attribute `keyed`, as those of `pyengm.attacks`."""
ANALYSIS_BN = ("eval", "train")


class ImageBatch(NamedTuple):
    """Images x (b, ...) in [0, 1], labels y (b,), and the key of their random values."""

    x: Tensor
    y: Tensor
    key: Key


class Batches:
    """Images in batches whose sizes differ by at most one.

    Args:
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        batch_size: The largest size of a batch.
        seed: Of random values, which depend on it and on the position of an image.

    Raises:
        DataError: There are no images, or not one label for each.
        ConfigError: batch_size is below 1.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int = 250, seed: int = 0):
        if len(images) == 0 or labels.shape != (len(images),):
            raise DataError(
                f"expected one image or more and a label for each, got {len(images)} images and labels of shape "
                f"{tuple(labels.shape)}"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
        self.images, self.labels, self.seed = images, labels, seed
        self.rows = torch.arange(len(images)).tensor_split(-(-len(images) // batch_size))

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, number: int, device: torch.device) -> ImageBatch:
        """Batch `number` on a device."""
        rows = self.rows[number]
        x, y = (t[rows.to(t.device)].to(device) for t in (self.images, self.labels))
        return ImageBatch(x, y, Key(self.seed, 0, rows.to(device)))


def along_run(models: Models) -> Iterator[tuple[int, nn.Module]]:
    """The models with their epochs; one model alone has epoch 0."""
    yield from [(0, models)] if isinstance(models, nn.Module) else models


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model without any."""
    return next((t.device for t in model.parameters()), torch.device("cpu"))


def attacked(model: nn.Module, batch: ImageBatch, attack: Attack | None) -> Tensor:
    """Adversarial examples (b, ...) of an attack; the images themselves without one."""
    if attack is None:
        return batch.x
    return run_attack(attack, model, batch.x, batch.y, batch.key).detach()


@contextmanager
def analysis_mode(model: nn.Module, bn: str, seed: int = 0) -> Iterator[None]:
    """Context in which a model is in a mode, and is left as it was afterwards, with the random numbers of torch.

    Args:
        model: The model.
        bn: "eval": running statistics, no dropout; "train": statistics of the batch, the running ones unchanged, and
            dropout with random numbers of the seed.
        seed: Of dropout.

    Raises:
        ConfigError: For another mode.
    """
    check_bn(bn)
    device = device_of(model)
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(bn == "train")
        with torch.random.fork_rng([device] if device.type == "cuda" else []), running_statistics_kept(model):
            torch.manual_seed(seed)
            yield
    finally:
        for module, training in flags:
            module.training = training


def check_bn(bn: str) -> None:
    """Raises ConfigError for a mode that is not one of ANALYSIS_BN."""
    if bn not in ANALYSIS_BN:
        raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(ANALYSIS_BN)}")


def couples_examples(model: nn.Module, bn: str) -> bool:
    """Whether the loss of an example depends on the others of its batch."""
    return any(
        isinstance(module, _NormBase) and (bn == "train" or not module.track_running_stats)
        for module in model.modules()
    )


@torch.no_grad()
def losses_at(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy losses (b,) and whether each image is classified correctly, (b,) bool."""
    logits = logits_of(model, x, y)
    return cross_entropy(logits, y), logits.argmax(dim=1) == y


def to_array(t: Tensor) -> np.ndarray:
    """A tensor as an array in host memory, in float64 where it is one of floats."""
    t = t.detach().cpu()
    return (t.double() if t.is_floating_point() else t).numpy()
