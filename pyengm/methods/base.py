"""The interface of every training method: a batch in, per-example losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel
from pyengm.attacks.fosc import FOSCRecord
from pyengm.attacks.logits import check_labels, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_extras
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo
from pyengm.methods.per_example_buffer import PerExampleBuffer, buffers_of
from pyengm.ops import Key


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass of a method gives the optimiser.

    Args:
        losses: (n,) losses with their graph.
        x_adv: (n, ...) images that the model is trained on.
        logits: (n, k) outputs of the model on x_adv, or None where the losses are no classification losses.
        update: Whether the optimiser steps after the backward pass of these losses; else gradients accumulate.
        fosc: What an attack that stops by the FOSC did to each of the images, for a log; None for other attacks.
        undo: Reverts what the method did to the parameters (AWP, SAM); it is called after the optimiser's step.
        undo_before_step: Whether `undo` is called before that step, when the gradients are complete (SAM).
        weighed: (n,) the part of the losses that weightings of examples multiply, see `Reweighted`; None for all.
    """

    losses: Tensor
    x_adv: Tensor
    logits: Tensor | None
    update: bool = True
    undo: Callable[[], None] | None = None
    undo_before_step: bool = False
    fosc: FOSCRecord | None = None
    weighed: Tensor | None = None


class Method(ABC):
    """Turns a batch into per-example losses; called once per batch with the model in training mode.

    Attributes:
        info: The facts of the method, see `MethodInfo`.
        needs_input_grad: Whether x_adv of the step outputs requires grad, for optimisers that weigh examples by their
            input gradients; the trainer may set it.
        single_pass: Whether a batch gives one step output; optimisers with a closure support only such methods.
        restart_epoch: The epoch at whose start the weights return to their initial values, or None.
    """

    info: MethodInfo = MethodInfo()
    needs_input_grad: bool = False
    single_pass: bool = False
    restart_epoch: int | None = None
    _label_smoothing: float = 0.0

    @property
    def label_smoothing(self) -> float:
        """The share of every label that all classes get in equal parts, in the losses that weights are trained on.

        It is 0 unless set. An attack that takes passes of its own keeps the labels as they are.

        Raises:
            ConfigError: On setting, for values outside [0, 1), and where the method has labels of its own.
        """
        return self._label_smoothing

    @label_smoothing.setter
    def label_smoothing(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"label_smoothing is {share}; expected a share from 0 to less than 1")
        if share and self.info.own_labels:
            reason = self.info.own_labels
            raise ConfigError(f"label_smoothing is {share}, which {type(self).__name__} cannot take: {reason}")
        self._label_smoothing = share

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """(n,) losses, for training the weights, of labels (n,) or probabilities (n, k), with `label_smoothing`."""
        check_labels(logits, y)
        return cross_entropy(logits, y, self.label_smoothing)

    def as_input(self, x: Tensor) -> Tensor:
        """The images x as the model gets them for the losses."""
        return x.detach().requires_grad_(self.needs_input_grad)

    @abstractmethod
    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        """The step outputs of one batch in turn; the caller uses each with the optimiser before it takes the next one.

        Args:
            model: The model, in training mode.
            x: (n, ...) images in [0, 1].
            y: (n,) int64 labels, or (n, k) probabilities of the classes, as of mixup, where the losses are
                cross-entropies.
            key: The random numbers to use and the identities of the images; None for anonymous images.
            transform: The augmentation that made x from the stored images; None for no augmentation.
        """

    def prepare(self, dataset: DatasetSpec) -> None:
        """Receives the training images once, before training."""

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called before the batches of `epoch`, counted from 0; not when a run resumes within it."""

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        """Called after an epoch.

        Args:
            model: The model.
            metrics: The metrics of the epoch: "train_robust", and "robust" where images are held out.

        Returns:
            Whether the method gave the model other weights.
        """
        return False

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called when the gradients of an update are complete."""

    def buffers(self) -> Mapping[str, PerExampleBuffer]:
        """What is kept for every training image, by name, once `prepare` was called; each process has its share."""
        return buffers_of(self)

    def extra_state(self) -> dict[str, Any]:
        """The other state that is kept across batches, tensors not copied, as in torch's modules; empty for most."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `extra_state` returned."""
        if state:
            raise ConfigError(
                f"{type(self).__name__} has no use for the saved {', '.join(state)}; if it keeps something for every "
                "image, call prepare(DatasetSpec(...)) before load_state_dict"
            )

    def state_dict(self) -> dict[str, Any]:
        """All state of the method: `extra_state`, and the buffers by name."""
        return self.extra_state() | {name: buffer.state_dict() for name, buffer in self.buffers().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; an empty state, from before `prepare`, leaves the buffers as they are.

        Raises:
            ConfigError: `prepare` was not called.
            CheckpointError: The state is for other images.
        """
        own, buffers = dict(state), self.buffers()
        if own and not buffers.keys() <= own.keys():
            raise CheckpointError(f"the state has no {', '.join(buffers.keys() - own.keys())}: it is another method's")
        saved = {name: own.pop(name) for name in buffers if name in own}
        for name, state in saved.items():
            buffers[name].load_state_dict(state)
        if own or not saved:
            self.load_extra_state(own)


class SinglePassMethod(Method):
    """A method with one step output per batch: `method(model, x, y)`."""

    single_pass = True

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        """The step output of a batch; arguments as for `passes`."""

    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        yield self(model, x, y, key, transform)


class AttackMethod(SinglePassMethod):
    """First an attack on the weights as they are, then losses on its result; AWP may come between the two.

    Attributes:
        threat: The threat model that is trained against.
    """

    threat: ThreatModel

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        key = self.key_for(x, key)
        return self.outcome(model, x, self.perturb(model, x, y, key, transform), y)

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        """The adversarial images (n, ...), new memory: the graph of the losses needs them until its backward pass."""

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        """The losses of images x and adversarial images x_adv for the current weights: L_i = CE(f(x'_i), y_i)."""
        x_adv = self.as_input(x_adv)
        logits = logits_of(model, x_adv)
        return StepOutput(self.cross_entropy(logits, y), x_adv, logits)

    def key_for(self, x: Tensor, key: Key | None) -> Key:
        """The given key, or a fresh one for anonymous images. Raises DataError for a key of another length."""
        check_extras(x, None, key, None)
        return Key.fresh(len(x), x.device) if key is None else key


def require_key(method: Method, key: Key | None) -> Key:
    """The key, for methods that keep something for every image.

    Raises:
        ConfigError: There is no key, or `prepare` was not called.
    """
    if key is None or not method.buffers():
        raise ConfigError(
            f"{type(method).__name__} keeps something for every image: call prepare(DatasetSpec(...)) once, and pass "
            "key=pyengm.ops.Key(seed, epoch, index) with the identities of the images of a batch"
        )
    return key
