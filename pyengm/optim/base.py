"""Momentum SGD whose backward pass takes one loss per example and may weigh the examples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.pergrad import check_losses


@dataclass(frozen=True)
class ExampleWeights:
    """What a step did to each example: gradient norms (n,) and weights (n,), detached."""

    norms: Tensor
    weights: Tensor


class ExampleSGD(torch.optim.SGD):
    """torch.optim.SGD with `backward(losses)`; subclasses decide the weights of the examples."""

    def backward(self, losses: Tensor) -> ExampleWeights | None:
        """Adds the gradient of (1/n) sum_i w_i L_i to .grad of the parameters, w_i held constant.

        losses: (n,), one per example, with their graph, which is freed.
        Returns the norms and weights, or None where all weights are 1 and no norms were needed.
        Raises ValueError for losses of another shape or without a graph, NonFiniteError when losses are not finite.
        """
        check_losses(losses)
        used = self._weigh(losses)
        (losses if used is None else losses * used.weights.to(losses.dtype)).mean().backward()
        return used

    def _weigh(self, losses: Tensor) -> ExampleWeights | None:
        return None

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
