"""The line of A-ENGM: gradient norms from input-gradient norms."""

from typing import Any

import torch
from torch import Tensor

from pyengm.ops import regression_fit, regression_statistics, regression_weights
from pyengm.utils.distributed import all_reduce_sum, world_size


class Regression:
    """||g_i|| = gamma1 ||dL_i/dx_i|| + gamma0, an average over the fits that starts at (0, 1), and the count of calls.

    Where torch.distributed runs, the fit is one over the examples of all processes.
    """

    def __init__(self) -> None:
        self.gammas = torch.tensor([0.0, 1.0], dtype=torch.float64)  # gamma0, gamma1
        self.calls = 0

    def weights(self, input_norms: Tensor, norms: Tensor | None, alpha: float, keep: float) -> Tensor:
        """The weights of examples, after an update of the line where norms are given.

        Args:
            input_norms: (n,) norms of the input gradients.
            norms: (n,) norms of the gradients, to which the line is fitted first; None leaves the line as it is.
            alpha: Largest norm of an example's gradient.
            keep: Share of the old line.

        Returns:
            (n,) weights.
        """
        gammas = self.gammas.to(input_norms.device)
        if norms is not None and world_size() > 1:
            sums = all_reduce_sum(regression_statistics(input_norms, norms))
            norms, gammas = None, regression_fit(sums, gammas, keep=keep)
        weights, self.gammas = regression_weights(input_norms, norms, gammas, alpha, keep=keep)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The line and the count of calls."""
        return {"gammas": self.gammas, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.gammas, self.calls = state["gammas"], state["calls"]
