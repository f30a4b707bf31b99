"""A training step of ours and the same step by the authors' public code, with the same network, weights and batch.

The authors' step is the one of their script (see author_baselines.py) on a batch that is ready; only ATAS and ATTA crop
within the step. Our step takes a batch from `Loader`, with crops and flips, and calls `train_step`.

Peak memory of one side, in a process of its own: cd bench && python -m tools.paired_steps NAME SETTING [DIR]
NAME is a key of `PAIRED_STEPS`, SETTING the values of a `Setting`, such as cpu,float32,16,64. With DIR, the folder of
the authors' repositories, the step is theirs, without it ours.
"""

import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from baselines import author_baselines
from torch import nn

from pyengm import train_step
from pyengm.data import ImageDataset, Loader
from pyengm.methods import ATAS, ATTA, MART, PGDATAWP, TRADES, TRADESAWP, DatasetSpec, Method
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.ops import Key
from pyengm.optim import OPTIMIZERS
from pyengm.training.precision import in_precision
from tools import memory

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
IMAGE_SIZE, EPOCH = 32, 12  # pixels; the epoch of all steps, after every warm-up


class SGDOptions(TypedDict):
    lr: float
    momentum: float
    weight_decay: float


class PGDOptions(TypedDict):
    eps: float
    step_size: float
    steps: int


SGD: SGDOptions = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}  # lr: too small to memorise the one batch
PGD: PGDOptions = {"eps": EPS, "step_size": STEP_SIZE, "steps": STEPS}


@dataclass(frozen=True)
class Setting:
    """A ResNet-18 with batch norm, and batches of random images of 32 x 32 pixels.

    Args:
        device: Device of model and batches.
        precision: Precision of the network, as --precision.
        width: Channels of the first stage.
        n: Images of a batch.
    """

    device: str = "cpu"
    precision: str = "float32"
    width: int = 16
    n: int = 64

    def network(self) -> nn.Module:
        """A model in training mode, always with the same weights."""
        torch.manual_seed(0)
        return build("resnet18", width=self.width).train().to(self.device)

    def pixels(self, batches: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Random images, (batches * n, 3, 32, 32) uint8, and their labels; always the same."""
        total = batches * self.n
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (total, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
        return images, torch.arange(total) % 10

    def make_images(self, batches: int = 1) -> ImageDataset:
        """The images of `pixels` as a data set."""
        return ImageDataset(*self.pixels(batches), tuple("0123456789"), "cifar10", "train")

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


class Trainer:
    """A model, its optimiser and steps of a method, as the trainer takes them.

    Args:
        method: Method of adversarial training.
        setting: Network, precision and batch.
        optimizer: Name of the optimiser, as --optimizer.
    """

    def __init__(self, method: Method, setting: Setting, optimizer: str = "msgd"):
        device, data = torch.device(setting.device), setting.make_images()
        model = to_fast_memory_format(setting.network(), device, half=setting.precision != "float32")
        self.model, self.method = in_precision(model, setting.precision), method
        self.optimizer = OPTIMIZERS[optimizer](model.parameters(), **SGD)
        self.batches = Loader(
            data, setting.n, device=device, seed=0, augment="shift", shuffle=True, memory_format=memory_format_of(model)
        )
        index = torch.arange(len(data))
        method.prepare(DatasetSpec(index, data.shape, padding=self.batches.padding, batches=1, device=device))
        method.start_epoch(self.model, EPOCH)
        self.batch = next(self.batches.epoch(EPOCH))

    def step(self) -> float:
        """Takes one step on the next batch, and returns the mean loss."""
        self.batch = batch = next(self.batches.epoch(EPOCH))
        key = Key(0, EPOCH, batch.index)
        used = train_step(self.method, self.model, self.optimizer, batch.x, batch.y, key, batch.transform)
        return used[0][0].losses.mean().item()


@dataclass(frozen=True)
class PairedStep:
    """A training step in both implementations.

    Args:
        folder: Folder of the authors' repository.
        baseline: Function of author_baselines.py that builds their step.
        method: Builds our method.
    """

    folder: str
    baseline: Callable[..., author_baselines.Step]
    method: Callable[[], Method]

    def ours(self, setting: Setting) -> Trainer:
        return Trainer(self.method(), setting)

    def theirs(self, setting: Setting, root: Path) -> author_baselines.Step:
        batch = self.ours(setting).batch
        model = in_precision(setting.network(), setting.precision)
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        return self.baseline(root, model, optimizer, batch.x.contiguous(), batch.y)


PAIRED_STEPS = {
    "TRADES": PairedStep("TRADES", partial(author_baselines.trades, **PGD), partial(TRADES, **PGD)),
    "MART": PairedStep("MART", partial(author_baselines.mart, **PGD), partial(MART, **PGD)),
    "AT-AWP": PairedStep("AWP", partial(author_baselines.at_awp, **PGD), partial(PGDATAWP, **PGD)),
    "TRADES-AWP": PairedStep("AWP", partial(author_baselines.trades_awp, **PGD), partial(TRADESAWP, **PGD)),
    "ATAS": PairedStep("ATAS", partial(author_baselines.atas, eps=EPS), partial(ATAS, EPS, epochs=30)),
    "ATTA": PairedStep("ATTA", partial(author_baselines.atta, eps=EPS, step_size=EPS / 2, steps=1), partial(ATTA, EPS)),
}


def check_losses(ours: Trainer, theirs: author_baselines.Step) -> None:
    """Checks that both train the same model on the same images. Only ATTA's code returns no loss."""
    loss = theirs()
    assert loss is None or ours.step() == pytest.approx(loss, rel=0.02)  # random starts and crops differ


def main(name: str, values: str, root: str | None = None) -> None:
    torch.set_num_threads(1)
    device, precision, width, n = values.split(",")
    pair, setting = PAIRED_STEPS[name], Setting(device, precision, int(width), int(n))
    memory.report(pair.ours(setting).step if root is None else pair.theirs(setting, Path(root)), device)


if __name__ == "__main__":
    main(*sys.argv[1:])
