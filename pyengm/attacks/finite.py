"""An attack that meets a nan says so: its sign moves nothing, and the example would pass for a robust one."""

import math

from torch import Tensor

from pyengm.errors import NonFiniteError


def check_finite(*tensors: Tensor) -> None:
    """Raises NonFiniteError unless all losses and gradients given are finite; waits for the device."""
    if not math.isfinite(sum(t.detach().sum() for t in tensors).item()):
        raise NonFiniteError("the attack's loss or its gradient is nan or infinite: look at the model's outputs")
