"""Accuracy of a classifier on images, as they are or attacked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyengm.attacks import attack_mode
from pyengm.data import ImageDataset, Loader
from pyengm.errors import NonFiniteError
from pyengm.evaluation.attack_registry import Attack
from pyengm.evaluation.calibration import expected_calibration_error
from pyengm.models import memory_format_of
from pyengm.ops import Key
from pyengm.utils.distributed import all_gather_object, rank, world_size

BATCH_SIZE = 250  # AutoAttack's own: 256 would run as 250 and 6


def sharded(data: ImageDataset, predict: Callable[[ImageDataset], Tensor]) -> Tensor:
    """predict(data), numbers (N, ...) on the CPU per image; where several processes run, each judges its share."""
    if world_size() == 1:
        return predict(data)
    mine = torch.arange(len(data))[rank() :: world_size()]
    parts = all_gather_object(predict(data.subset(mine)) if len(mine) else None)
    whole = parts[0].new_zeros(len(data), *parts[0].shape[1:])
    for place, part in enumerate(parts):
        if part is not None:
            whole[place :: world_size()] = part
    return whole


@dataclass(frozen=True)
class Verdicts:
    """What a model makes of N images, (N,) each, on the CPU.

    correct: bool, whether it classifies the image right. confidence: the probability that it gives the class that it
    predicts. loss: the cross-entropy of the true class.
    """

    correct: Tensor
    confidence: Tensor
    loss: Tensor

    def summary(self, name: str) -> dict[str, float]:
        """Accuracy as `name`, mean loss as name_loss, expected calibration error as name_ece."""
        return {
            name: self.correct.double().mean().item(),
            f"{name}_loss": self.loss.double().mean().item(),
            f"{name}_ece": expected_calibration_error(self.confidence, self.correct),
        }


def predict(
    model: nn.Module, data: ImageDataset, attack: Attack | None, *, seed: int, device: torch.device
) -> Verdicts:
    """The verdicts on all images under the attack (None: as they are).

    The model is in eval mode meanwhile. The random starts are those of (seed, the image's index), so that they do
    not depend on the batches. Raises NonFiniteError when the model's outputs are not finite.
    Where several processes run, all call this, and each attacks its share.
    """
    correct, confidence, loss = sharded(data, partial(_predict, model, attack, seed, device)).unbind(1)
    return Verdicts(correct.bool(), confidence, loss)


def _predict(model: nn.Module, attack: Attack | None, seed: int, device: torch.device, data: ImageDataset) -> Tensor:
    """Right or not, confidence and loss, (N, 3)."""
    parts = []
    images = Loader(
        data, BATCH_SIZE, device=device, seed=seed, augment="none", shuffle=False, memory_format=memory_format_of(model)
    )
    for batch in images.epoch(0):
        x = batch.x
        if getattr(attack, "keyed", False):
            x = attack(model, x, batch.y, key=Key(seed, 0, batch.index))
        elif attack is not None:
            x = attack(model, x, batch.y)
        with attack_mode(model, "eval"), torch.no_grad():
            logits = model(x)
        if not logits.isfinite().all():
            raise NonFiniteError(f"the model's outputs on {data.name} are nan or infinite")
        right, confidence = logits.argmax(dim=1) == batch.y, logits.softmax(dim=1).amax(dim=1)
        loss = cross_entropy(logits, batch.y, reduction="none")
        parts.append(torch.stack([right.to(loss), confidence.to(loss), loss], dim=1).cpu())
    return torch.cat(parts)


def correct(model: nn.Module, data: ImageDataset, attack: Attack | None, *, seed: int, device: torch.device) -> Tensor:
    """(N,) bool on the CPU: is image i still classified right under the attack? Arguments and errors as `predict`."""
    return predict(model, data, attack, seed=seed, device=device).correct


def accuracy(model: nn.Module, data: ImageDataset, attack: Attack | None, *, seed: int, device: torch.device) -> float:
    """Share of `correct` images, in [0, 1]."""
    return correct(model, data, attack, seed=seed, device=device).double().mean().item()
