"""Natural training: no adversary."""

from torch import Tensor, nn

from pyengm.attacks.logits import logits_of
from pyengm.data import Transform
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class Natural(SinglePassMethod):
    """L_i = CE(f(x_i), y_i)."""

    info = MethodInfo(name="natural", title="no adversary", optimizer=None)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x = self.as_input(x)
        logits = logits_of(model, x)
        return StepOutput(self.cross_entropy(logits, y), x, logits)
