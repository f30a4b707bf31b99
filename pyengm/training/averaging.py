"""Averages of the weights along a run, which are evaluated and saved in place of the weights that are trained.

The formulas are those of `torch.optim.swa_utils.AveragedModel`, which makes the host wait for a GPU at every update: it
keeps the number of updates in a tensor. Steps here never wait. Training, its method and the watch for catastrophic
overfitting go on with the weights that are trained.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

AVERAGES = ("none", "ema", "swa")


class Averaging:
    """No average: what is evaluated is the model itself."""

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def evaluated(self) -> nn.Module:
        return self.model

    def after_step(self) -> None:
        """Called after every update of the weights, and where fp16 skipped one."""

    def after_epoch(self, epoch: int) -> None:
        """Called after `epoch`, counted from 0, before the evaluation."""

    def restart(self) -> None:
        """Called where the model was given other weights, which have nothing to do with those averaged so far."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class Average(Averaging):
    """A second model, of averages a <- a + share (w - a) over weights w; until there are any, the model is evaluated.

    Running statistics of batch norm are averaged as weights are, and counts are copied. To find the statistics anew, as
    weight averaging without an adversary does, the images would have to be those that training saw: with clean ones,
    networks trained on digits lost up to 8 points of their accuracy under PGD-20 against averaged statistics.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.average, self.count = deepcopy(model).requires_grad_(False).eval(), 0

    @property
    def evaluated(self) -> nn.Module:
        return self.average if self.count else self.model

    @torch.no_grad()
    def add(self, share: float) -> None:
        """Takes the weights as they are now into the average."""
        averages, values = _tensors(self.average), _tensors(self.model)
        floats = [i for i, t in enumerate(averages) if t.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floats], [values[i] for i in floats], share)
        for average, value in zip(averages, values, strict=True):
            if not average.is_floating_point():
                average.copy_(value)
        self.count += 1

    def restart(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self.average.load_state_dict(state["average"])


class EMA(Average):
    """The exponential moving average of all steps: a <- d a + (1 - d) w, beginning with a = w after the first one.

    d = min(decay, (1 + t) / (10 + t)) after t steps, so that the first weights are soon forgotten. A step is one
    of the loop: FreeAT's replays of a batch are one.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def after_step(self) -> None:
        self.add(1 - min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 1.0)


class Mean(Average):
    """The mean of the weights at the ends of the epochs `start`, start + 1, ..., counted from 0.

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", Alg. 1 (SWA).
    """

    def __init__(self, model: nn.Module, start: int):
        super().__init__(model)
        self.start = start

    def after_epoch(self, epoch: int) -> None:
        if epoch >= self.start:
            self.add(1 / (self.count + 1))


def averaging(kind: str, model: nn.Module, *, decay: float, start: int | None) -> Averaging:
    """The average of that name (`AVERAGES`). decay: of "ema". start: the first epoch of "swa"."""
    if kind == "ema":
        return EMA(model, decay)
    return Mean(model, start) if kind == "swa" else Averaging(model)


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers()))
