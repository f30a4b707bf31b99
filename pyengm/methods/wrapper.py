"""Methods around another method, whose images, epochs and state are the other's."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from pyengm.methods.base import Method
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Key

BaseT = TypeVar("BaseT", bound=Method)


class Wrapper(Method, Generic[BaseT]):
    """A method that changes the losses of `base`, or where they are taken, and leaves all else to it.

    Args:
        base: The method.

    Attributes:
        epoch: The current epoch, counted from 0: that of `start_epoch`, or else of the key.
    """

    def __init__(self, base: BaseT):
        self.base, self.epoch, self.epoch_is_given = base, 0, False
        self.restart_epoch = base.restart_epoch

    @property
    def needs_input_grad(self) -> bool:
        return self.base.needs_input_grad

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        self.base.needs_input_grad = value

    @property
    def label_smoothing(self) -> float:
        return self.base.label_smoothing

    @label_smoothing.setter
    def label_smoothing(self, share: float) -> None:
        self.base.label_smoothing = share

    def follow(self, key: Key | None) -> None:
        """Takes the epoch of the key where no epoch was started."""
        if key is not None and not self.epoch_is_given:
            self.epoch = key.epoch

    def prepare(self, dataset: DatasetSpec) -> None:
        self.base.prepare(dataset)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.epoch_is_given = epoch, True
        self.base.start_epoch(model, epoch)

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        return self.base.finish_epoch(model, metrics)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.base.before_step(model, optimizer)

    def buffers(self) -> Mapping[str, PerExampleBuffer]:
        return self.base.buffers()

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "base": self.base.extra_state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.epoch_is_given = state["epoch"], True
        self.base.load_extra_state(state["base"])
