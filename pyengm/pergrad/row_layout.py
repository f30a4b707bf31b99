"""Which example the rows of a matrix belong to, as the gradients of weights need it."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_read_by_graphs: list[Tensor] = []  # orders that CUDA graphs read: a graph keeps no tensor alive


@dataclass(frozen=True)
class RowLayout:
    """Row r belongs to example (r // inner) % n; or, where order is given, row order[i, t] is the t-th of example i.

    Consecutive rows of an example have inner = T, sequence first has inner = 1, windows and frames lie between. Where
    examples have unequal numbers of rows, order (n, T) is filled up with the number of rows, R.
    """

    n: int
    inner: int
    order: Tensor | None = None
    _moved: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)  # order, by device

    @staticmethod
    def of(owners: np.ndarray, n: int) -> "RowLayout":
        """The layout of rows that belong to these examples, (R,); -1 stands for none."""
        total = len(owners)
        if total % n == 0:
            change = int(np.argmax(owners != owners[0])) or total
            if total % (n * change) == 0 and (np.arange(total) // change % n == owners).all():
                return RowLayout(n, change)
        counts = np.bincount(owners[owners >= 0], minlength=n)
        order = np.full((n, max(int(counts.max()), 1)), total)
        for example in range(n):
            mine = np.flatnonzero(owners == example)
            order[example, : len(mine)] = mine
        return RowLayout(n, 0, torch.from_numpy(order))

    def sums(self, t: Tensor) -> Tensor:
        """(R, ...) -> (n, ...): sums over the rows of each example."""
        one_each = self.order is None and self.inner == 1 and len(t) == self.n
        return t if one_each else self.split(t).sum(1)

    def split(self, t: Tensor) -> Tensor:
        """(R, ...) -> (n, T, ...)."""
        if self.order is not None:
            if t.device not in self._moved:  # once, as a copy from the host waits for the device
                self._moved[t.device] = self.order.to(t.device)
            order = self._moved[t.device]
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                _read_by_graphs.append(order)
            return torch.cat([t, t.new_zeros(1, *t.shape[1:])])[order]
        if t.shape[0] == self.n * self.inner:
            return t.reshape(self.n, self.inner, *t.shape[1:])
        return t.reshape(-1, self.n, self.inner, *t.shape[1:]).transpose(0, 1).flatten(1, 2)
