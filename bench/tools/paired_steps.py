"""A training step of ours and the same one by the authors' public code, with the same network, weights and batch.

Theirs: a step as their script takes it (see author_baselines.py) on a batch that lies ready; only in ATAS and ATTA do they crop
within the step. Ours: a batch from `Loader`, cropped and mirrored, then `train_step`.

Memory of the steps of one side, in a process of its own: python bench/tools/paired_steps.py NAME SETTING DIR (without DIR: of ours)
NAME: one of `PAIRS`. SETTING: the values of a `Setting`, such as cpu,float32,16,64.
"""

import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from baselines import author_baselines
from tools import memory
from torch import nn

from pyengm.data import ImageDataset, Loader
from pyengm.methods import ATAS, ATTA, MART, PGDATAWP, TRADES, TRADESAWP, DatasetSpec, Method
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.ops import Key
from pyengm.optim import OPTIMIZERS
from pyengm.training.precision import in_precision
from pyengm.training.steps.train_step import train_step

EPS, STEP, K = 8 / 255, 2 / 255, 10
SIDE, EPOCH = 32, 12  # pixels; the epoch: after every warm-up
SGD = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}  # too small to learn the one batch by heart


@dataclass(frozen=True)
class Setting:
    """A resnet18 with batch norm, of this width and in this precision, and n images of 32 x 32."""

    device: str = "cpu"
    precision: str = "float32"
    width: int = 16
    n: int = 64

    def network(self) -> nn.Module:
        """Always with the same weights."""
        torch.manual_seed(0)
        return build("resnet18", width=self.width).train().to(self.device)

    def make_images(self, batches: int = 1) -> ImageDataset:
        """Random pixels for some batches, always the same."""
        total = batches * self.n
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (total, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return ImageDataset(images, torch.arange(total) % 10, tuple("0123456789"), "cifar10", "train")

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


class Ours:
    """A model, its optimiser and steps of a method, as the trainer takes them."""

    def __init__(self, method: Method, setting: Setting, optimizer: str = "msgd"):
        device, data = torch.device(setting.device), setting.make_images()
        model = to_fast_memory_format(setting.network(), device, half=setting.precision != "float32")
        self.model, self.method = in_precision(model, setting.precision), method
        self.optimizer = OPTIMIZERS[optimizer](model.parameters(), **SGD)
        self.batches = Loader(
            data, setting.n, device=device, seed=0, augment="shift", shuffle=True, memory_format=memory_format_of(model)
        )
        method.prepare(DatasetSpec(data.index, data.shape, padding=self.batches.padding, batches=1, device=device))
        method.start_epoch(self.model, EPOCH)
        self.batch = next(self.batches.epoch(EPOCH))

    def step(self) -> float:
        self.batch = batch = next(self.batches.epoch(EPOCH))
        key = Key(0, EPOCH, batch.index)
        used = train_step(self.method, self.model, self.optimizer, batch.x, batch.y, key, batch.transform)
        return used[0][0].losses.mean().item()


@dataclass(frozen=True)
class Pair:
    """folder: of their repository. step_of: from author_baselines.py. method: ours."""

    folder: str
    step_of: Callable[..., author_baselines.Step]
    method: Callable[[], Method]

    def ours(self, setting: Setting) -> Ours:
        return Ours(self.method(), setting)

    def theirs(self, setting: Setting, root: Path) -> author_baselines.Step:
        batch = self.ours(setting).batch
        model = in_precision(setting.network(), setting.precision)
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        return self.step_of(root, model, optimizer, batch.x.contiguous(), batch.y)


PGD = {"eps": EPS, "step": STEP, "steps": K}
PAIRS = {
    "TRADES": Pair("TRADES", partial(author_baselines.trades, **PGD), partial(TRADES, **PGD)),
    "MART": Pair("MART", partial(author_baselines.mart, **PGD), partial(MART, **PGD)),
    "AT-AWP": Pair("AWP", partial(author_baselines.at_awp, **PGD), partial(PGDATAWP, **PGD)),
    "TRADES-AWP": Pair("AWP", partial(author_baselines.trades_awp, **PGD), partial(TRADESAWP, **PGD)),
    "ATAS": Pair("ATAS", partial(author_baselines.atas, eps=EPS), partial(ATAS, EPS, epochs=30)),
    "ATTA": Pair("ATTA", partial(author_baselines.atta, eps=EPS, step_size=EPS / 2, steps=1), partial(ATTA, EPS)),
}


def check_losses(ours: Ours, theirs: author_baselines.Step) -> None:
    """Both train the same thing. Only ATTA's code returns no loss."""
    loss = theirs()
    assert loss is None or ours.step() == pytest.approx(loss, rel=0.02)  # random starts and crops differ


def main(name: str, setting: str, root: str | None = None) -> None:
    torch.set_num_threads(1)
    device, precision, width, n = setting.split(",")
    pair, setting = PAIRS[name], Setting(device, precision, int(width), int(n))
    memory.report(pair.ours(setting).step if root is None else pair.theirs(setting, Path(root)), device)


if __name__ == "__main__":
    main(*sys.argv[1:])
