"""What the examples of training loops train: a small network on the digits of scikit-learn, for some seconds."""

import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyengm

BATCH = 64  # of all processes together
LR, ALPHA = 0.2, 4.0  # which clips about half of the examples


def digits(n: int = 1024) -> TensorDataset:
    """The first n images (n, 1, 8, 8) in [0, 1], and their labels (n,)."""
    data = pyengm.data.load("digits", "train")
    return TensorDataset(torch.as_tensor(data.images[:n]).float() / 255, data.labels[:n])


def network() -> nn.Module:
    """A network whose examples are independent, with the same weights in every process."""
    torch.manual_seed(0)
    return pyengm.models.build("cnn4", width=8, image_size=8, in_channels=1, norm_layer="gn").train()


def processes() -> int:
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def loader() -> DataLoader:
    """The batches of this process, in the order of the images."""
    data, world = digits(), processes()
    sampler = DistributedSampler(data, world, int(os.environ.get("RANK", "0")), shuffle=False)
    return DataLoader(data, BATCH // world, sampler=sampler)


def report(losses: Tensor, statistics: dict[str, float]) -> None:
    """Prints the mean loss of a batch, and what the optimiser did to its examples."""
    print(f"loss {losses.mean().item():.3f}  " + "  ".join(f"{name} {value:.3f}" for name, value in statistics.items()))
