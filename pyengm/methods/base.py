"""What every adversarial-training method is: a batch in, per-example losses out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from pyengm.ops import Key


@dataclass(frozen=True)
class Outcome:
    """losses: (n,) with their graph; x_adv: (n, ...) the pictures trained on; logits: (n, k) the model's on x_adv."""

    losses: Tensor
    x_adv: Tensor
    logits: Tensor


class Method(ABC):
    """Called once per batch with the model in training mode.

    input_gradients: whether the outcome's x_adv requires grad, for optimisers that weigh by the input gradient.
    """

    input_gradients = False

    def as_input(self, x: Tensor) -> Tensor:
        """The pictures x as they go into the model for the losses."""
        return x.detach().requires_grad_(self.input_gradients)

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, key: Key) -> Outcome:
        """x: (n, ...) pictures in [0, 1]; y: (n,) int64 labels; key: whose random numbers to use."""
