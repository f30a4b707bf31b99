"""Outer optimisers: torch.optim.Optimizers whose `backward` takes per-example losses (n,)."""

from pyengm.optim.base import ExampleSGD, ExampleWeights
from pyengm.optim.engm import ENGM
from pyengm.optim.msgd import MSGD

OPTIMIZERS: dict[str, type[ExampleSGD]] = {"msgd": MSGD, "engm": ENGM}

__all__ = ["ENGM", "MSGD", "OPTIMIZERS", "ExampleSGD", "ExampleWeights"]
