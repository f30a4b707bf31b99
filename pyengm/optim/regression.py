"""The line of A-ENGM: gradient norms from input-gradient norms."""

from typing import Any

import torch
from torch import Tensor

from pyengm.ops import regression_fit, regression_statistics, regression_weights
from pyengm.utils.distributed import all_reduce_sum, world_size


class Regression:
    """||g_i|| = gamma1 ||dL_i/dx_i|| + gamma0, moved towards every fit from (0, 1) on, and the count of calls.

    Where torch.distributed runs, the fit is one over the examples of all processes.
    """

    def __init__(self) -> None:
        self.gammas = torch.tensor([0.0, 1.0], dtype=torch.float64)  # gamma0, gamma1
        self.calls = 0

    def weights(self, input_norms: Tensor, norms: Tensor | None, alpha: float, keep: float) -> Tensor:
        """(n,) weights for n input norms; norms (n,) move the line first, and None leaves it."""
        gammas = self.gammas.to(input_norms.device)
        if norms is not None and world_size() > 1:
            sums = all_reduce_sum(regression_statistics(input_norms, norms))
            norms, gammas = None, regression_fit(sums, gammas, keep=keep)
        weights, self.gammas = regression_weights(input_norms, norms, gammas, alpha, keep=keep)
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"gammas": self.gammas, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gammas, self.calls = state["gammas"], state["calls"]
