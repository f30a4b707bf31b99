"""Accuracy of a classifier on pictures, as they are or attacked."""

import torch
from torch import Tensor, nn

from pyengm.attacks import attack_mode
from pyengm.data import Batches, ImageData
from pyengm.errors import NonFiniteError
from pyengm.evaluation.suite import Attack
from pyengm.models import layout_of
from pyengm.ops import Key

BATCH_SIZE = 250  # AutoAttack's own: 256 would run as 250 and 6


def correct(model: nn.Module, data: ImageData, attack: Attack | None, *, seed: int, device: torch.device) -> Tensor:
    """(N,) bool on the CPU: is picture i still classified right under the attack (None: as it is)?

    The model is in eval mode meanwhile. The random starts are those of (seed, the picture's index), so that they do
    not depend on the batches. Raises NonFiniteError when the model's outputs are not finite.
    """
    right = []
    pictures = Batches(
        data, BATCH_SIZE, device=device, seed=seed, augment="none", shuffle=False, memory_format=layout_of(model)
    )
    for batch in pictures.epoch(0):
        x = batch.x
        if getattr(attack, "keyed", False):
            x = attack(model, x, batch.y, key=Key(seed, 0, batch.index))
        elif attack is not None:
            x = attack(model, x, batch.y)
        with attack_mode(model, "eval"), torch.no_grad():
            logits = model(x)
        if not logits.isfinite().all():
            raise NonFiniteError(f"the model's outputs on {data.name} are nan or infinite")
        right.append((logits.argmax(dim=1) == batch.y).cpu())
    return torch.cat(right)


def accuracy(model: nn.Module, data: ImageData, attack: Attack | None, *, seed: int, device: torch.device) -> float:
    """Share of `correct` pictures, in [0, 1]."""
    return correct(model, data, attack, seed=seed, device=device).double().mean().item()
