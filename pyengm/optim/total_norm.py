"""The base of optimisers that change the norm of the whole gradient right before the update."""

from typing import Any

import torch
from torch import Tensor

from pyengm.optim.base import PerExampleSGD
from pyengm.utils.distributed import full_tensor


class TotalNormSGD(PerExampleSGD):
    """Keeps the norm that a step has measured, for `statistics`; a GradScaler unscales the gradient before that.

    Args:
        args: Positional arguments of `PerExampleSGD`.
        options: Other arguments of `PerExampleSGD`.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._step_supports_amp_scaling = False  # else a fused update gets scaled gradients, after we have changed them

    def statistics(self) -> dict[str, float]:
        """As of every optimiser, and "total_norm": the norm of the last step's gradient before it was changed."""
        norm = self._calls.total_norm
        own = {} if norm is None else {"total_norm": norm.item()}
        return super().statistics() | own

    def _measure(self) -> Tensor:
        """The norm of the whole gradient, over the shards of all processes where it is sharded; kept for a log."""
        self._calls.total_norm = norm = full_tensor(torch.nn.utils.get_total_norm(self._gradients()))
        return norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
