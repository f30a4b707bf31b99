"""What every adversarial-training method is: a batch in, per-example losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_extras
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.per_example_buffer import PerExampleBuffer
from pyengm.ops import Key


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass of a method gives the optimiser.

    losses: (n,) with their graph. x_adv: (n, ...) the images trained on. logits: (n, k) of the model on x_adv, or
    None where the losses are no classification losses.
    update: whether the optimiser steps after the backward pass of these losses, or gradients go on adding up.
    undo: takes back what the method did to the parameters (AWP); called after the optimiser's step.
    """

    losses: Tensor
    x_adv: Tensor
    logits: Tensor | None
    update: bool = True
    undo: Callable[[], None] | None = None


class Method(ABC):
    """How a batch becomes per-example losses; called once per batch with the model in training mode.

    needs_input_grad: whether the outcome's x_adv requires grad, for optimisers that weigh by the input gradient.
    double_backward: whether the losses contain a gradient, so that their graph holds derivatives of derivatives.
    single_pass: whether a batch gives one outcome, and modifies_grads: whether `before_step` changes the gradients;
    optimisers with a closure serve only methods with one outcome and gradients as they are.
    uses_val_metrics: whether `finish_epoch` goes by accuracies on held-out images.
    rank_local_state: whether `extra_state` is another one in each of several processes.
    restart_epoch: the epoch at whose start the weights go back to the first ones, if there is one.
    own_labels: why the losses take no smoothed labels, for methods that do not use `cross_entropy`.
    """

    needs_input_grad = False
    double_backward = False
    single_pass = False
    modifies_grads = False
    uses_val_metrics = False
    rank_local_state = False
    restart_epoch: int | None = None
    own_labels = ""
    _label_smoothing = 0.0

    @property
    def label_smoothing(self) -> float:
        """The share of every label that all classes get in equal parts, in the losses that weights are trained on.

        0 unless set. An attack that takes passes of its own keeps the labels as they are.
        Setting it raises ConfigError for numbers outside [0, 1), and where the method has labels of its own.
        """
        return self._label_smoothing

    @label_smoothing.setter
    def label_smoothing(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"label_smoothing is {share}; expected a share from 0 to less than 1")
        if share and self.own_labels:
            raise ConfigError(f"label_smoothing is {share}, which {type(self).__name__} cannot take: {self.own_labels}")
        self._label_smoothing = share

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """That of labels y (n,), smoothed by `label_smoothing`, for the losses that weights are trained on, (n,)."""
        return cross_entropy(logits, y, self.label_smoothing)

    def as_input(self, x: Tensor) -> Tensor:
        """The images x as they go into the model for the losses."""
        return x.detach().requires_grad_(self.needs_input_grad)

    @abstractmethod
    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        """The outcomes of one batch in turn; before the next one is asked for, the optimiser has used the last.

        x: (n, ...) images in [0, 1]; y: (n,) int64 labels; key: whose random numbers to use, and which images
        these are (None: anonymous ones); transform: how augmentation made x of the stored images.
        """

    def prepare(self, examples: DatasetSpec) -> None:
        """Told once, before training, which images there will be."""

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called before the batches of `epoch`, counted from 0; not when a run resumes within it."""

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        """Called after an epoch with its line of metrics: "train_robust", and "robust" where images are held out.

        Returns whether it gave the model other weights.
        """
        return False

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called when the gradients of an update are complete."""

    def stores(self) -> Mapping[str, PerExampleBuffer]:
        """What is kept for every training image, by name, once `prepare` was called; each process has its share."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What else is kept across batches, its tensors themselves, as torch's modules do; empty for most."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Puts back what `extra_state` gave."""
        if state:
            raise ConfigError(
                f"{type(self).__name__} has no place for the saved {', '.join(state)}; if it keeps something for every "
                "image, call prepare(DatasetSpec(...)) before the state"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that the method keeps: `extra_state`, and the stores by name."""
        return self.extra_state() | {name: store.state_dict() for name, store in self.stores().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave; an empty one, from before `prepare`, leaves the stores as they are.

        Raises ConfigError where `prepare` was not called, CheckpointError for the state of other images.
        """
        own, stores = dict(state), self.stores()
        if own and not stores.keys() <= own.keys():
            raise CheckpointError(f"the state has no {', '.join(stores.keys() - own.keys())}: it is another method's")
        saved = {name: own.pop(name) for name in stores if name in own}
        for name, state in saved.items():
            stores[name].load_state_dict(state)
        if own or not saved:
            self.load_extra_state(own)


class SinglePassMethod(Method):
    """A method with one outcome per batch: `method(model, x, y)`."""

    single_pass = True

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        """The outcome of a batch; arguments as for `passes`."""

    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        yield self(model, x, y, key, transform)


class AttackMethod(SinglePassMethod):
    """First an attack with the weights as they are, then losses on what it found; AWP may come between the two.

    threat: the threat model that is trained against.
    """

    threat: ThreatModel

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        key = self.key_for(x, key)
        return self.outcome(model, x, self.perturb(model, x, y, key, transform), y)

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        """The adversarial images (n, ...), new memory: the graph of the losses needs them until its backward."""

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        """The losses of images x and adversarial images x_adv in the model as it is: L_i = CE(f(x'_i), y_i)."""
        x_adv = self.as_input(x_adv)
        logits = model(x_adv)
        return StepOutput(self.cross_entropy(logits, y), x_adv, logits)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        """The given key, or a fresh one for anonymous images. Raises DataError for a key of another length."""
        check_extras(x, None, key, None)
        return Key.fresh(len(x), x.device) if key is None else key


def require_key(method: str, key: Key | None) -> Key:
    """The key, for methods that keep something per image. Raises ConfigError without one."""
    if key is None:
        raise ConfigError(
            f"{method} keeps something for every image: call prepare(DatasetSpec(...)) once, and pass "
            "key=pyengm.ops.Key(seed, epoch, index), which says which images a batch holds"
        )
    return key
