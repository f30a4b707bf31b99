"""A training step of every method in natural steps, beside its passes: pytest bench/bench_methods.py.

ResNet-18 of width 16 with batch norm on 64 images, momentum SGD, one CPU thread, layout and step as in the trainer;
rounds alternate with natural training. A forward pass, the gradient in the inputs of all layers and the gradient in the
weights count as one each, so a natural step is 3; "ideal" is the method's own count over 3. What it leaves out has rows
of its own, to be added: YOPO's passes through the first layer, and FGSM-SDI's generator, which is larger than this
network. Steps are such as most are: no update of the generator, no reset of stored perturbations.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm import MSGD, train_step
from pyengm.data import CropFlip
from pyengm.methods import METHODS, DatasetSpec
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.ops import Key

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, N, EPS, EPOCHS = 16, 64, 8 / 255, 30
K = 10  # steps of the attacks of many steps


@dataclass(frozen=True)
class Row:
    """Counts of forward, input-gradient and weight-gradient passes of a step, and how it is set up.

    epoch: at which it is taken. GradAlign's double backward passes, through g and h, count as what they consist of: a
    convolution like a forward pass's, an input gradient, and two weight gradients each.
    """

    passes: tuple[float, float, float]
    options: dict[str, object] = field(default_factory=dict)
    epoch: int = 12

    @property
    def ideal(self) -> float:
        return sum(self.passes) / 3


ROWS = {
    "pgd_at": Row((K + 1, K + 1, 1)),
    "trades": Row((K + 3, K + 2, 2)),
    "mart": Row((K + 2, K + 2, 2)),
    "pgd_at_awp": Row((K + 2, K + 2, 2)),
    "trades_awp": Row((K + 5, K + 4, 4)),
    "mart_awp": Row((K + 4, K + 4, 4)),
    "dynamic": Row((K + 1, K + 1, 1), {"c_max": 0.0}),  # no example stops: every step is taken
    "fgsm_then_pgd": Row((2, 2, 1)),
    "curriculum": Row((5, 5, 1)),  # at 4 steps
    "fgsm_rs": Row((2, 2, 1)),
    "grad_align": Row((5, 5, 5)),
    "ssat": Row((4, 2, 1)),  # where every image is classified right; fewer forward passes elsewhere
    "atta": Row((2, 2, 1)),
    "atas": Row((2, 2, 1)),
    "free_at": Row((8, 8, 8)),
    "yopo": Row((5, 5, 5)),
    "nuat": Row((3.5, 3, 2)),  # three forward passes and four in turn
    "sub_at": Row((K + 1, K + 1, 1)),
    "fgsm_sdi": Row((3, 3, 1)),
    "fgsm_pgi": Row((2, 3, 2)),
}


def build_method(name: str) -> Any:
    kind: Any = METHODS[name]
    row = ROWS.get(name, Row((1, 1, 1)))
    if name == "natural":
        return kind()
    options = {"epochs": EPOCHS} if name in ("dynamic", "atas", "nuat", "sub_at") else {}
    method = kind(EPS, **options, **row.options)
    if name == "curriculum":
        method.k = 4
    return method


class Trainer:
    """A model, a batch as the loader makes it, and steps of a method."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.model = to_fast_memory_format(build("resnet18", width=WIDTH), torch.device("cpu")).train()
        self.optimizer = MSGD(self.model.parameters(), lr=1e-4)
        self.method, index = build_method(name), torch.arange(N)
        self.method.prepare(DatasetSpec(index, (3, 32, 32), padding=4, batches=20))
        epoch = ROWS[name].epoch if name in ROWS else 0
        self.method.start_epoch(self.model, 0)
        self.method.start_epoch(self.model, epoch)
        self.transform = CropFlip.draw(index, (3, 32, 32), 4, seed=0, epoch=epoch)
        shifted = self.transform.gather_window(F.pad(torch.rand(N, 3, 32, 32), (4, 4, 4, 4)))
        self.x = shifted.contiguous(memory_format=memory_format_of(self.model))
        self.y, self.key = index % 10, Key(0, epoch, index)

    def step(self) -> None:
        train_step(self.method, self.model, self.optimizer, self.x, self.y, self.key, self.transform)


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"{name}, ideal {row.ideal:.2f}") for name, row in ROWS.items()]
)
def test_step(relative_cost, name):
    natural, trainer = Trainer("natural"), Trainer(name)
    for _ in range(2):
        trainer.step()
    relative_cost(trainer.step, natural.step, rounds=9, ideal=ROWS[name].ideal)


@pytest.mark.parametrize("name", ["yopo, first layer", "fgsm_sdi, generator"])
def test_left_out(relative_cost, name):
    natural, trainer = Trainer("natural"), Trainer(name.partition(",")[0])
    trainer.step()
    part = first_layer_of_yopo if "first" in name else generator_of_sdi
    relative_cost(lambda: part(trainer), natural.step, rounds=9)


def first_layer_of_yopo(trainer: Trainer) -> None:
    """Five times three steps through the first layer, and its weight gradient."""
    layer = next(module for module in trainer.model.modules() if isinstance(module, nn.Conv2d))
    x, weights = trainer.x.clone().requires_grad_(), list(layer.parameters())
    for _ in range(5):
        for _ in range(3):
            torch.autograd.grad(layer(x).sum(), x)
        torch.autograd.grad(layer(x).sum(), weights)


@torch.no_grad()
def generator_of_sdi(trainer: Trainer) -> None:
    trainer.method.generator.eval()(torch.cat([trainer.x, trainer.x], dim=1))
