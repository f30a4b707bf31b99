"""A training step of every optimiser in units of MSGD's on the same batch: pytest bench/bench_optim.py.

ResNet-18 of width 32 on 32 images, one CPU thread; rounds alternate with MSGD. "PGD-10" attacks before the losses, as
in adversarial training; "no attack" is the outer step alone. ENGM and NENGM clip half of the examples. AENGM has one
row for an ordinary step and one for a step that fits its line: with tau = 50 the mean cost is (49 "aengm" + "aengm's
fit") / 50. The cost of Entropy-SGD is per mini-batch. "paper": Table 1 of Dabouei et al. 2022, in units of its MSGD:
PGD-10, ResNet-18 with batch norm, width 64, n = 128, Titan RTX; for AENGM over a whole period.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.models import build
from pyengm.ops import Key
from pyengm.optim import AENGM, CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.pergrad import per_example_grad_norms

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, N, INNER_STEPS = 32, 32, 5
PAPER = {"mgnc": 1.02, "sngm": 1.05, "nengm": 1.25, "aengm": 1.38, "fengm": 8.4, "engm": 8.4}
NAMES = [name for name in [*OPTIMIZERS, *CLOSURE_OPTIMIZERS] if name != "msgd"]


class Trainer:
    """A model, a batch, and steps with one optimiser."""

    def __init__(self, name: str, norm: str, attack: PGD | None):
        torch.manual_seed(0)
        self.model, self.attack, self.calls = build("resnet18", norm_layer=norm, width=WIDTH), attack, 0
        self.x, self.y = torch.rand(N, 3, 32, 32), torch.arange(N) % 10
        kind = (OPTIMIZERS | CLOSURE_OPTIMIZERS)[name]
        self.optimizer = kind(self.model.parameters(), lr=1e-4, **self._options(name))

    def _options(self, name: str) -> dict[str, Any]:
        if name in CLOSURE_OPTIMIZERS:
            return {"inner_steps": INNER_STEPS, "inner_lr": 1e-4}  # too small to memorise the one batch
        x = self.x.clone().requires_grad_()
        losses = self._losses(x)
        if name in ("engm", "ps_clip_sgd"):
            return {"alpha": per_example_grad_norms(losses, self.model.parameters()).median().item()}
        gradient = torch.autograd.grad(losses.sum(), x)[0].flatten(1).norm(dim=1)
        if name == "nengm":
            return {"alpha": gradient.median().item()}
        return {}

    def _losses(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), self.y, reduction="none")

    def losses_and_inputs(self) -> tuple[Tensor, Tensor]:
        x, self.calls = self.x, self.calls + 1
        if self.attack is not None:
            x = self.attack(self.model, x, self.y, key=Key(0, self.calls, torch.arange(N)))
        x = x.detach().requires_grad_()
        return self._losses(x), x

    def step(self) -> None:
        self.optimizer.zero_grad()
        losses, x = self.losses_and_inputs()
        self.optimizer.backward(losses, inputs=x)
        self.optimizer.step()

    def outer_step(self) -> None:
        self.optimizer.step(lambda: self.losses_and_inputs()[0])

    def fit_step(self) -> None:
        """A step that fits the line of AENGM."""
        assert isinstance(self.optimizer, AENGM)
        self.optimizer.regression.calls = 0
        self.step()


@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("steps", [0, 10], ids=["no attack", "PGD-10"])
@pytest.mark.parametrize("name", [*NAMES, "aengm's fit"], ids=lambda name: f"{name}, paper {PAPER.get(name, '-')}")
def test_step(relative_cost, name, steps, norm):
    attack = PGD(8 / 255, 2 / 255, steps) if steps else None
    msgd = Trainer("msgd", norm, attack)
    trainer = Trainer(name.partition("'")[0], norm, attack)
    rounds = 5 if steps else 15
    if name in CLOSURE_OPTIMIZERS:
        relative_cost(
            trainer.outer_step, lambda: [msgd.step() for _ in range(INNER_STEPS)], rounds=max(3, rounds // INNER_STEPS)
        )
    elif name == "aengm's fit":
        relative_cost(trainer.fit_step, msgd.step, rounds=rounds)
    else:
        trainer.step()  # with AENGM's fit, which has a row of its own
        relative_cost(trainer.step, msgd.step, rounds=rounds)


def test_the_unit_is_torchs(compare):
    """MSGD's own step against a plain loop with torch.optim.SGD."""
    msgd = Trainer("msgd", "gn", None)
    model = nn.Sequential(msgd.model)
    plain = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def loop():
        plain.zero_grad()
        F.cross_entropy(model(msgd.x), msgd.y).backward()
        plain.step()

    compare(msgd.step, {"torch.optim.SGD": loop}, rounds=10)
