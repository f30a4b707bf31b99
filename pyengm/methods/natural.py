"""Natural training: no adversary."""

from torch import Tensor, nn

from pyengm.data import Transform
from pyengm.methods.base import OnePass, Outcome
from pyengm.ops import Key


class Natural(OnePass):
    """L_i = CE(f(x_i), y_i)."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Outcome:
        x = self.as_input(x)
        logits = model(x)
        return Outcome(self.cross_entropy(logits, y), x, logits)
