"""Which example the rows of a matrix belong to, found out by sign codes."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError

DIRECTIONS = 4  # no gradient is at a right angle to all of them
MIXING_TOLERANCE = 1e-4  # of a row's norm: a change of sign is exact but for atomic sums in another order


@dataclass(frozen=True)
class Rows:
    """Row r belongs to example (r // inner) % n; or, where order is given, row order[i, t] is the t-th of example i.

    Consecutive rows of an example have inner = T, sequence first has inner = 1, windows and frames lie between.
    Where examples have unequal numbers of rows, order is filled up with the number of rows, R. silent (R,): rows that
    were zero when this was found out and may belong to anyone; it holds while they stay zero.
    """

    n: int
    inner: int
    order: Tensor | None = None
    silent: Tensor | None = None

    def split(self, t: Tensor) -> Tensor:
        """(R, ...) -> (n, T, ...)."""
        if self.order is not None:
            return torch.cat([t, t.new_zeros(1, *t.shape[1:])])[self.order.to(t.device)]
        if t.shape[0] == self.n * self.inner:
            return t.reshape(self.n, self.inner, *t.shape[1:])
        return t.reshape(-1, self.n, self.inner, *t.shape[1:]).transpose(0, 1).flatten(1, 2)

    def owners(self, total: int) -> Tensor:
        """The example of each of R = total rows; rows that belong to none count as the first's."""
        numbers = torch.arange(total)
        if self.order is None:
            return numbers // self.inner % self.n
        owners = numbers.new_zeros(total + 1)
        owners[self.order.cpu()] = torch.arange(self.n)[:, None].expand(*self.order.shape)
        return owners[:-1]


def sign_codes(losses: Tensor) -> Tensor:
    """(1 + ceil(log2 n), n): ones, then for each bit b the sign -1 where bit b of the example's number is set."""
    n = len(losses)
    numbers = torch.arange(n, device=losses.device)
    bits = [1 - 2 * (numbers >> b & 1).to(losses.dtype) for b in range((n - 1).bit_length())]
    return torch.stack([torch.ones_like(losses.detach()), *bits])


@dataclass(frozen=True)
class Sketch:
    """Random projections (R, K) of the rows of an output gradient, and their norms (R,)."""

    values: Tensor
    sizes: Tensor

    @staticmethod
    def of(matrix: Tensor) -> "Sketch":
        matrix = matrix.reshape(len(matrix), -1).double()
        directions = torch.randn(
            matrix.shape[1], DIRECTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        return Sketch(matrix @ directions.to(matrix.device), matrix.norm(dim=1))


def rows_of(sketches: list[Sketch], signs: Tensor) -> list[Rows]:
    """The layouts that fit the rows of one output gradient, from its sketches under each of the codes.

    A row that belongs to one example changes its sign with that example's weight and nothing else; a row that two
    examples share changes its size. Rows of zeros fit everything. Raises UnsupportedOperationError for rows that mix
    examples.
    """
    n = signs.shape[1]
    sizes = sketches[0].sizes
    silent, live = sizes == 0, sizes.isfinite() & (sizes > 0)  # a broken example shows in the norms, not here
    values = torch.stack([sketch.values for sketch in sketches])  # (codes, R, K)
    clearest = values[0].abs().argmax(1)[None, :, None].expand(len(values), -1, 1)
    measured = values.gather(2, clearest)[:, :, 0]  # (codes, R)
    tolerance = MIXING_TOLERANCE * sizes
    turned = measured * measured[0].sign()  # (codes, R), of one size along each column
    bits = (turned[1:] < 0).long()  # (bits, R)
    owner = (bits << torch.arange(len(bits), device=bits.device)[:, None]).sum(0)
    mixed = ((values.abs() - values[0].abs()).abs() > tolerance[:, None]).any(2).any(0)
    if mixed[live].any() or (owner[live] >= n).any():
        raise UnsupportedOperationError("its output gradient mixes examples")
    total, number = len(sizes), torch.arange(len(sizes), device=sizes.device)
    inner = [b for b in range(total // n, 0, -1) if total % n == 0 and total // n % b == 0]
    fitting = [Rows(n, b) for b in inner if ((number // b % n) == owner)[live].all()]
    if not silent.any():
        return fitting or [_ordered(n, owner, live)]
    fitting.append(_ordered(n, owner, live))  # zeros need no example, so this one fits as well
    return [dataclasses.replace(rows, silent=silent) for rows in fitting]


def _ordered(n: int, owner: Tensor, live: Tensor) -> Rows:
    owner = torch.where(live, owner, n)
    counts = torch.bincount(owner, minlength=n + 1)
    order = owner.new_full((n + 1, int(counts[:n].max())), len(owner))
    by_owner = owner.argsort(stable=True)[: int(live.sum())]
    starts = counts.cumsum(0) - counts
    order[owner[by_owner], torch.arange(len(by_owner), device=owner.device) - starts[owner[by_owner]]] = by_owner
    return Rows(n, 0, order[:n])
