"""What gradients owe to batch statistics, along a few directions of examples, from one further backward pass.

By the statistics alone loss i changes a weight's gradient by a linear function of u_i, its derivatives in the mean and
deviation of every norm, which lie close to the span of a few directions. With V (n, r) the largest left singular
vectors of u (n, 2 sum C), the pass carries sum_i V_ik u_i down from the norms, through all others on the way: for
k = 0, ..., r - 1 at once, each from the images of one part of the batch, whose means stand for those of all. A layer
then has R_k, and what the norms right behind it add to gradient i, p_i, becomes
p_i - sum_jk V_ik V_jk p_j + sum_k V_ik R_k.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pyengm.pergrad.batch_norm.frozen import FrozenNorm
from pyengm.pergrad.batch_norm.projection import is_layer
from pyengm.pergrad.engine import PerExampleBackward, Sketches
from pyengm.pergrad.hooks import full_precision, visit_gradients
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.norm import channel_sums

PART = 16  # examples of a part, at least
MAX_RANK = 16


@dataclass(frozen=True)
class StatisticsField:
    """A norm that adds the derivatives of its statistics, and passes on those of the norms above it.

    first, second: (r, C), S1 and S2 of the direction of each part. part: (N,), the part of each image.
    """

    norm: FrozenNorm
    first: Tensor
    second: Tensor
    part: Tensor

    @property
    def index(self) -> int:
        return self.norm.index

    @property
    def node(self):
        return self.norm.node

    def input_gradient(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        """scale (g - mean(g) - xhat mean(g xhat)) - (S1 + xhat S2) / M, means and M over the images of a part.

        out: a tensor for it, where it fits.
        """
        x, mean, rstd = self.norm.saved()
        total, dot = channel_sums(g, x)
        sizes = torch.zeros(len(self.first), dtype=g.dtype, device=g.device).index_add_(
            0, self.part, torch.ones_like(total[:, 0])
        )
        sizes = (sizes * (g.numel() / total.numel()))[:, None]
        sums = torch.zeros_like(self.first)
        total, dot = (sums.index_add(0, self.part, t) for t in (total, (dot - total * mean) * rstd))
        scale = self.norm.scale()
        shift, slope = (scale * total + self.first) / sizes, (scale * dot + self.second) / sizes * rstd
        slope, shift = slope[self.part], (shift - slope * mean)[self.part]
        rows = (*shift.shape, *[1] * (g.dim() - 2))
        g = self.norm.input_gradient(g, out)
        return g.sub_(shift.view(rows)).addcmul_(x, slope.view(rows), value=-1)


def add_statistics(found: PerExampleBackward, sketches: Sketches) -> None:
    """Replaces what the norms right behind each layer add by what all norms add; the graph is kept."""
    with full_precision(found.losses.device):
        _add_statistics(found, sketches)


def _add_statistics(found: PerExampleBackward, sketches: Sketches) -> None:
    n, features = len(found.losses), sketches.features
    assert features is not None  # the pass before was asked for them
    norms = [norm for norm in found.frozen if norm.index in sketches.sums]
    v = _directions(norms, sketches, max(1, min(n // PART, MAX_RANK)))
    rank = v.shape[1]
    part = _parts(n, rank, v.device)
    fields = []
    for norm in norms:
        first, second = (v.mT.to(s) @ s for s in sketches.sums[norm.index])
        fields.append(StatisticsField(norm, first, second, part[_owners(sketches.rows[norm.index], norm)]))
    uses = {use.index: use for use in found.usage.uses if use.rule is not None and use.rows is not None}
    rows = {k: row for k, row in found.sketched().items() if row in sketches.layers}
    wanted = {index for index, use in uses.items() if not rows.keys().isdisjoint(use.slots.values())}

    def visit(index: int, grads: tuple[Tensor | None, ...]) -> None:
        use = uses[index]
        for slot, layer in found.rule_gradients(use, grads, rows).items():
            row = rows[use.slots[slot]]
            assert is_layer(layer)  # as it was in the pass before
            along = layer.along_features(features[row])
            w = v.to(along)
            sums = torch.zeros(rank, *along.shape[1:], dtype=along.dtype, device=along.device)
            sums.index_add_(0, part, along)
            push = sketches.layers[row].push
            missing = sums.flatten(1) - w.mT @ push.flatten(1)
            sketches.layers[row].push = push + (w @ missing).view_as(push)

    visit_gradients(found.graph, found.losses, torch.zeros_like(found.losses), wanted, visit, frozen=fields)


def _directions(norms: list[FrozenNorm], sketches: Sketches, rank: int) -> Tensor:
    """The largest left singular vectors of the derivatives in all means and deviations, in units of the deviation."""
    derivatives = ((s * norm.deviation()).double() for norm in norms for s in sketches.sums[norm.index])
    gram = sum(u @ u.mT for u in derivatives)
    assert isinstance(gram, Tensor)  # there is a norm, else nothing had to be estimated
    return torch.linalg.eigh(gram).eigenvectors[:, -rank:]  # here the host waits for a GPU


@lru_cache(maxsize=16)
def _parts(n: int, rank: int, device: torch.device) -> Tensor:
    """The part of the batch that each example is in, (n,); kept, as a copy from the host waits for the device."""
    return (torch.randperm(n, generator=torch.Generator().manual_seed(n)) % rank).to(device)


def _owners(rows: RowLayout, norm: FrozenNorm) -> Tensor:
    """The example of each image, (N,)."""
    x = norm.saved()[0]
    indices = rows.split(torch.arange(len(x), device=x.device))
    owners = torch.zeros(len(x) + 1, dtype=torch.long, device=x.device)  # where order pads, it names one row more
    examples = torch.arange(rows.n, device=x.device)[:, None].expand_as(indices)
    return owners.index_put_((indices,), examples)[: len(x)]
