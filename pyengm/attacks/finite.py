"""An attack that meets a nan says so: its sign moves nothing, and the example would pass for a robust one."""

from torch import Tensor

from pyengm.checks import require
from pyengm.errors import NonFiniteError


def check_finite(*tensors: Tensor) -> None:
    """Raises NonFiniteError unless all losses and gradients given are finite; waits for the device, see `require`."""
    require(sum(t.detach().sum() for t in tensors).isfinite(), _error)


def _error() -> NonFiniteError:
    return NonFiniteError("the attack's loss or its gradient is nan or infinite: look at the model's outputs")
