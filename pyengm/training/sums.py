"""What is added up over the batches of an epoch, on the device: reading it would keep the host waiting."""

import torch
from torch import Tensor

from pyengm.methods import Used

SUMS = ("pictures", "loss", "robust", "clipped")


def no_sums(device: torch.device) -> Tensor:
    """Zeros, (4,) float64, in the order of `SUMS`."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def measure(used: Used, y: Tensor) -> Tensor:
    """Sums over all pictures of all passes that classify; y: (n,) labels of the pictures, or of each pass's in turn."""
    sums = no_sums(y.device)
    pictures, loss, robust, clipped = sums
    place = 0
    for outcome, weights in used:
        if outcome.logits is None:
            continue
        n = len(outcome.losses)
        labels = y[place : place + n] if len(y) > n else y
        place += n
        pictures += n
        loss += outcome.losses.detach().double().sum()
        robust += (outcome.logits.argmax(dim=1) == labels).sum()
        if weights is not None:
            clipped += (weights.weights < 1).sum()
    return sums


def read_sums(sums: Tensor) -> dict[str, float]:
    """The sums by name, in one transfer."""
    return dict(zip(SUMS, sums.tolist(), strict=True))


def write_sums(sums: dict[str, float], device: torch.device) -> Tensor:
    """The inverse of `read_sums`."""
    return torch.tensor([sums[name] for name in SUMS], dtype=torch.float64, device=device)
