"""A training step of every method in natural steps, beside its passes: pytest bench/bench_methods.py.

ResNet-18 of width 16 with batch norm on 64 images, momentum SGD, one CPU thread, layout and step as in the trainer;
rounds alternate with natural training. A forward pass, the gradient in the inputs of all layers and the gradient in
the weights count as one each, so a natural step is 3; "ideal" is the count in the method's record over 3. What it
leaves out has rows of its own, to be added: YOPO's passes through the first layer, and FGSM-SDI's generator, which is
larger than this network; LBGAT's teacher is one more natural step. Steps are such as most are: no update of the
generator, no reset of stored perturbations.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm import MSGD, train_step
from pyengm.data import CropFlip
from pyengm.methods import FGSMSDI, METHODS, Curriculum, DatasetSpec, Method
from pyengm.models import build, memory_format_of, to_fast_memory_format
from pyengm.ops import Key

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, N, EPS, EPOCHS = 16, 64, 8 / 255, 30


# The options of a step of the benchmark apart from the defaults, and the epoch at which it is taken.
OPTIONS: dict[str, dict[str, Any]] = {  # every step is taken
    "ates": {"first_gap": 1.0, "last_gap": 1.0},
    "dynamic": {"c_max": 0.0},
    "fat": {"kappa": 10},
}
EPOCH = 12


def ideal(name: str) -> float:
    """The method's own count of passes, in natural steps."""
    return sum(METHODS[name].info.passes.of()) / 3


def build_method(name: str) -> Method:
    kind = METHODS[name]
    given = {"eps": EPS, "epochs": EPOCHS, **OPTIONS.get(name, {})}
    known = inspect.signature(kind).parameters
    method = kind(**{option: value for option, value in given.items() if option in known})
    if isinstance(method, Curriculum):
        method.k = kind.info.passes.steps
    return method


class Trainer:
    """A model, a batch as the loader makes it, and steps of a method."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.model = to_fast_memory_format(build("resnet18", width=WIDTH), torch.device("cpu")).train()
        self.optimizer = MSGD(self.model.parameters(), lr=1e-4)
        self.method, index = build_method(name), torch.arange(N)
        self.method.prepare(DatasetSpec(index, (3, 32, 32), padding=4, batches=20))
        epoch = 0 if name == "natural" else EPOCH
        self.method.start_epoch(self.model, 0)
        self.method.start_epoch(self.model, epoch)
        self.transform = CropFlip.draw(index, (3, 32, 32), 4, seed=0, epoch=epoch)
        shifted = self.transform.gather_window(F.pad(torch.rand(N, 3, 32, 32), (4, 4, 4, 4)))
        self.x = shifted.contiguous(memory_format=memory_format_of(self.model))
        self.y, self.key = index % 10, Key(0, epoch, index)

    def step(self) -> None:
        train_step(self.method, self.model, self.optimizer, self.x, self.y, self.key, self.transform)


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"{name}, ideal {ideal(name):.2f}") for name in METHODS if name != "natural"]
)
def test_step(relative_cost, name):
    natural, trainer = Trainer("natural"), Trainer(name)
    for _ in range(2):
        trainer.step()
    relative_cost(trainer.step, natural.step, rounds=9, ideal=ideal(name))


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
    method = trainer.method
    assert isinstance(method, FGSMSDI)
    assert method.generator is not None
    method.generator.eval()(torch.cat([trainer.x, trainer.x], dim=1))
