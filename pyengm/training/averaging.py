"""Averages of the weights along a run, which are evaluated and saved in place of the trained weights.

The formulas of means are those of `torch.optim.swa_utils.AveragedModel`, which keeps the number of updates in a tensor
and so makes the host wait for a GPU at every update. The classes here keep it on the host. The training, its method and
the check for catastrophic overfitting use the trained weights.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.errors import ConfigError

AVERAGES = ("none", "ema", "swa", "median")


class Averaging:
    """No average: the model itself is evaluated.

    Args:
        model: The model that is trained.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved."""
        return self.model

    def after_step(self) -> None:
        """Called after every update of the weights, and where fp16 skipped one."""

    def after_epoch(self, epoch: int) -> None:
        """Called after `epoch`, counted from 0, before the evaluation."""

    def restart(self) -> None:
        """Called when the model was given new weights that are unrelated to those averaged so far."""

    def copies(self, epochs: int) -> int:
        """The number of copies of the weights that the state holds at most in a run of so many epochs."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """The state to save; empty without an average."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Average(Averaging):
    """A second model with averages a <- a + weight (w - a) of the weights w. Before the first, the model is evaluated.

    Running statistics of batch norm are averaged like weights, and counts are copied. They are not computed anew after
    training, as weight averaging without an adversary does: that would take the images that training saw. With clean
    images, networks trained on digits lost up to 8 points of their accuracy under PGD-20 against averaged statistics.

    Args:
        model: The model that is trained.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.average, self.count = deepcopy(model).requires_grad_(False).eval(), 0

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved."""
        return self.average if self.count else self.model

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """Adds the present weights of the model to the average.

        Args:
            weight: Share of the present weights in the new average, in [0, 1].
        """
        averages, values = _tensors(self.average), _tensors(self.model)
        floats = [i for i, t in enumerate(averages) if t.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage] (torch has no public name for it)
            [averages[i] for i in floats], [values[i] for i in floats], weight
        )
        for average, value in zip(averages, values, strict=True):
            if not average.is_floating_point():
                average.copy_(value)
        self.count += 1

    def restart(self) -> None:
        """Begins a new average."""
        self.count = 0

    def copies(self, epochs: int) -> int:
        """The average."""
        return 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors and the number of updates."""
        return {"count": self.count, "average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.count = state["count"]
        self.average.load_state_dict(state["average"])


class EMA(Average):
    """The exponential moving average over all steps: a <- d a + (1 - d) w, with a = w after the first step.

    d = min(decay, (1 + t) / (10 + t)) after t steps, which reduces the influence of the first weights. A step is one of
    the training loop: all replays of a batch in FreeAT are one step.

    Args:
        model: The model that is trained.
        decay: Upper bound of d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def after_step(self) -> None:
        """Updates the average."""
        self.add(1 - min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 1.0)


class SWA(Average):
    """Stochastic weight averaging: the mean of the weights at the ends of the epochs start, start + 1, ...

    Args:
        model: The model that is trained.
        start: The first epoch of the average, counted from 0.

    References:
        Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", Alg. 1.
    """

    def __init__(self, model: nn.Module, start: int):
        super().__init__(model)
        self.start = start

    def after_epoch(self, epoch: int) -> None:
        """Updates the average from epoch `start` on."""
        if epoch >= self.start:
            self.add(1 / (self.count + 1))


class Median(Average):
    """The median of the weights at the ends of the epochs start, start + 1, ..., each number by itself.

    Of an even number it is the mean of the two in the middle. Outliers of single epochs, which a mean keeps, have no
    part in it. The weights of all these epochs are kept in host memory and in every checkpoint. Running statistics of
    batch norm are medians too; the authors compute them anew on training images, see `Average`.

    Args:
        model: The model that is trained.
        start: The first epoch of the median, counted from 0.

    References:
        Hu et al. 2024, "MEAT: Median-Ensemble Adversarial Training for Improving Robustness and Generalization".
    """

    def __init__(self, model: nn.Module, start: int):
        super().__init__(model)
        self.start = start
        self.epochs: list[list[Tensor]] = []  # the tensors of each epoch

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        """Updates the median from epoch `start` on."""
        if epoch < self.start:
            return
        self.epochs.append([value.detach().cpu().clone() for value in _tensors(self.model)])
        for i, (median, value) in enumerate(zip(_tensors(self.average), _tensors(self.model), strict=True)):
            median.copy_(_median([kept[i] for kept in self.epochs]) if value.is_floating_point() else value)
        self.count = len(self.epochs)

    def restart(self) -> None:
        """Forgets the epochs so far."""
        super().restart()
        self.epochs = []

    def copies(self, epochs: int) -> int:
        """The median and the weights of the epochs."""
        return 1 + epochs - self.start

    def state_dict(self) -> dict[str, Any]:
        """The median, and the tensors of every epoch in it."""
        return {**super().state_dict(), "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.epochs = [[value.cpu() for value in kept] for kept in state["epochs"]]


def build_averaging(name: str, model: nn.Module, *, decay: float, start: int | None) -> Averaging:
    """Builds the average of a name.

    Args:
        name: One of `AVERAGES`.
        model: The model that is trained.
        decay: Of "ema".
        start: The first epoch of "swa" and "median", counted from 0.

    Raises:
        ConfigError: For "swa" and "median" without a start.
    """
    if name == "ema":
        return EMA(model, decay)
    if name == "none":
        return Averaging(model)
    if start is None:
        raise ConfigError("swa_start is None; expected the first epoch of the average, counted from 0")
    return Median(model, start) if name == "median" else SWA(model, start)


def _median(values: list[Tensor]) -> Tensor:
    """The median of each element; of an even number the mean of the two in the middle."""
    ordered, half = torch.stack(values).sort(dim=0).values, len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(chain(model.parameters(), model.buffers()))
