"""The gradient of a weight in any node of torch's own: the node's backward function, called once for each example."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad
from pyengm.pergrad.rules.weights import Node, to_float32


class NodeCallGrad(PerExampleGrad):
    """Gradients that a node's backward function gives for the elements of its output gradients that an example owns.

    grads: the gradients of the node's outputs, None where undefined. owners: whose their elements are, -1 for nobody,
    each broadcastable to its gradient. A backward function is linear in the output gradients.
    """

    def __init__(
        self, node: Node, slot: int, shape: torch.Size, grads: Sequence[Tensor | None], owners: Sequence[Tensor], n: int
    ):
        self.node, self.slot, self.shape, self.n = node, slot, shape, n
        self.grads, self.owners = grads, owners
        self.kept: DenseGrad | None = None

    @staticmethod
    def owners_of(owners: np.ndarray, shape: Sequence[int], axis: int) -> Tensor:
        """Owners along one axis, as a tensor that broadcasts to the shape."""
        return torch.from_numpy(owners.copy()).view([-1 if a == axis else 1 for a in range(len(shape))])

    def squares(self, keep: bool = False) -> Tensor:
        if not keep:
            return super().squares()
        return self._materialized().squares()

    def materialize(self) -> None:
        self._materialized()

    def _materialized(self) -> DenseGrad:
        if self.kept is None:
            self.kept = DenseGrad(self.dense(slice(None)), self.shape)
        return self.kept

    def dense(self, examples: slice) -> Tensor:
        if self.kept is not None:
            return self.kept.dense(examples)
        unit = torch.eye(self.n)
        return torch.stack([self._call(unit[i]) for i in range(self.n)[examples]])

    def weighted(self, weights: Tensor) -> Tensor:
        return self.kept.weighted(weights) if self.kept is not None else self._call(weights)

    def _call(self, weights: Tensor) -> Tensor:
        table = torch.cat([weights, weights.new_zeros(1)])  # -1 takes the last
        scaled = [
            None if g is None else g * table.to(g.device, g.dtype)[owners.to(g.device)]
            for g, owners in zip(self.grads, self.owners, strict=True)
        ]
        found = self.node(*scaled)
        gradient = found[self.slot] if isinstance(found, tuple) else found
        if gradient is None:
            return next(g for g in self.grads if g is not None).new_zeros(self.shape)
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        return to_float32(gradient).sum_to_size(self.shape)  # autograd does that between nodes
