"""Accuracy of a classifier on images, without or under an attack."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyengm.attacks import attack_mode
from pyengm.attacks.keyed import run_attack
from pyengm.attacks.logits import Model, logits_of
from pyengm.attacks.losses import cross_entropy, log_softmax
from pyengm.attacks.model_state import module_of
from pyengm.data import ImageDataset, Loader
from pyengm.data.loader import Batch
from pyengm.errors import NonFiniteError
from pyengm.evaluation.attack_registry import Attack
from pyengm.evaluation.calibration import expected_calibration_error
from pyengm.evaluation.resumable import Resumable, compute_batches, settings_of
from pyengm.models import memory_format_of
from pyengm.ops import Key
from pyengm.utils.distributed import all_gather_object, rank, world_size

OnBatch = Callable[[int, int], None]  # images done, their total number
BATCH_SIZE = 250  # AutoAttack's own: 256 would run as 250 and 6


def sharded(data: ImageDataset, predict: Callable[[ImageDataset], Tensor]) -> Tensor:
    """Computes a tensor per image; where several processes run, each processes its shard of the images.

    Args:
        data: N images.
        predict: returns a tensor (n, ...) on the CPU for a subset of n images.

    Returns:
        predict(data), (N, ...), in every process.
    """
    if world_size() == 1:
        return predict(data)
    shard = torch.arange(len(data))[rank() :: world_size()]
    parts = all_gather_object(predict(data.subset(shard)) if len(shard) else None)
    first = next(part for part in parts if part is not None)  # a process without images has None
    whole = first.new_zeros(len(data), *first.shape[1:])
    for process, part in enumerate(parts):
        if part is not None:
            whole[process :: world_size()] = part
    return whole


@dataclass(frozen=True)
class Predictions:
    """Outcome of a classifier on N images, on the CPU.

    Args:
        correct: (N,) bool, whether an image is classified correctly.
        confidence: (N,) probability of the predicted class.
        loss: (N,) cross-entropy of the true class.
        images: (N, c, h, w) what the model was given, where that was asked for.
    """

    correct: Tensor
    confidence: Tensor
    loss: Tensor
    images: Tensor | None = None

    @property
    def ece(self) -> float:
        """The expected calibration error, in [0, 1]."""
        return expected_calibration_error(self.confidence, self.correct)

    def summary(self, name: str) -> dict[str, float]:
        """Accuracy as `name`, mean loss as name_loss, expected calibration error as name_ece; accuracy in [0, 1]."""
        return {
            name: self.correct.double().mean().item(),
            f"{name}_loss": self.loss.double().mean().item(),
            f"{name}_ece": self.ece,
        }


@torch.inference_mode(False)
def predict(
    model: Model,
    data: ImageDataset,
    attack: Attack | None,
    *,
    seed: int,
    device: torch.device,
    bn: str = "eval",
    keep_images: bool = False,
    resumable: Resumable | None = None,
    on_batch: OnBatch = lambda done, total: None,
) -> Predictions:
    """Predictions for all images under an attack.

    Where several processes run, all call this, and each attacks its shard. The random starts depend on (seed, index of
    the image), so that they do not depend on the batches.

    Args:
        model: classifier of images in [0, 1], a module or another function, on `device`; restored afterwards.
        data: N images.
        attack: called as attack(model, x, y); None: the images as they are.
        seed: seed of the random starts.
        device: device of the model.
        bn: mode of the model, and of its dropout and norm layers, for the predictions, see `attack_mode`. An attack has
            a mode of its own.
        keep_images: whether the predictions come with the images that the model was given.
        resumable: where the predictions of each batch are kept, so that a later call resumes from them.
        on_batch: called after each batch with the number of images done and their total number in this process.

    Returns:
        The predictions for all N images.

    Raises:
        ModelError: the model returns anything but logits.
        DataError: labels do not fit.
        NonFiniteError: outputs of the model are not finite.
        CheckpointError, StorageError: a file of `resumable` is damaged or cannot be written.
    """
    module = module_of(model)
    memory_format = torch.contiguous_format if module is None else memory_format_of(module)
    settings = {"seed": seed, "bn": bn, "batch_size": BATCH_SIZE, "of": "predictions"}
    if keep_images:
        settings["of"] = "predictions and images"

    def rows(shard: ImageDataset) -> Tensor:
        loader = Loader(
            shard, BATCH_SIZE, device=device, seed=seed, augment="none", shuffle=False, memory_format=memory_format
        )
        saved = None if resumable is None else resumable.run(attack=settings_of(attack), **settings)
        compute = partial(_predict, model, attack, seed, bn, data.name, keep_images)
        return compute_batches(loader, compute, saved, on_batch)

    values = sharded(data, rows)
    correct, confidence, loss = values[:, :3].unbind(1)
    images = values[:, 3:].reshape(-1, *data.shape) if keep_images else None
    return Predictions(correct.bool(), confidence, loss, images)


def _predict(
    model: Model, attack: Attack | None, seed: int, bn: str, name: str, keep_images: bool, batch: Batch
) -> Tensor:
    """Correct or not, confidence and loss, (n, 3), followed by the pixels of the images where these are kept."""
    x = batch.x
    if attack is not None:
        x = run_attack(attack, model, x, batch.y, Key(seed, 0, batch.index))
    with attack_mode(model, bn), torch.no_grad():
        logits = logits_of(model, x, batch.y)
    if not logits.isfinite().all():
        raise NonFiniteError(f"the model's outputs on {name} are nan or infinite")
    correct, confidence = logits.argmax(dim=1) == batch.y, log_softmax(logits).amax(dim=1).exp()
    loss = cross_entropy(logits, batch.y)
    values = torch.stack([correct.to(loss), confidence.to(loss), loss], dim=1)
    return torch.cat([values, x.flatten(1)], dim=1).cpu() if keep_images else values.cpu()


def correct(model: Model, data: ImageDataset, attack: Attack | None, **options: Any) -> Tensor:
    """Whether each image is classified correctly, (N,) bool on the CPU; arguments and errors as for `predict`."""
    return predict(model, data, attack, **options).correct


def accuracy(model: Model, data: ImageDataset, attack: Attack | None, **options: Any) -> float:
    """Share of images that are classified correctly, in [0, 1]; arguments and errors as for `predict`."""
    return correct(model, data, attack, **options).double().mean().item()
