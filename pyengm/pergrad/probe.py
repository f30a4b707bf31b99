"""Ownership found by experiment, at every call, for the part of a graph of which nothing is proven.

The gradients that enter this part are multiplied by a sign for each example, once for every bit of its number. What
belongs to one example alone changes its sign with that example's, and its size under no code: a change of sign is exact
in floating-point numbers. What several examples share changes its size under some code, as random factors on the
entering gradients keep shares from cancelling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.autograd_graph import Graph
from pyengm.pergrad.batch_norm.frozen import FrozenNorm
from pyengm.pergrad.hooks import visit_gradients
from pyengm.pergrad.layout import Shape
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.weight_usage import WeightUsage, WeightUse, error_context

DIRECTIONS = 4  # no gradient is at a right angle to all of them
ROUNDING = 32  # times the machine epsilon, of a row's norm; atomic sums on a GPU change their order
GPU_TOLERANCE = 1e-4


@dataclass(frozen=True)
class RowProjection:
    """Random projections (R, K) of the rows of a gradient, and their norms (R,)."""

    values: Tensor
    norms: Tensor

    @staticmethod
    def of(g: Tensor, view: Shape, axes: Sequence[int]) -> "RowProjection":
        """The rows of g, viewed as `view`, along these axes."""
        others = [axis for axis in range(len(view)) if axis not in axes]
        rows = torch.Size(view[axis] for axis in axes).numel()
        matrix = g.detach().reshape(view).permute(*axes, *others).reshape(rows, -1).double()
        if matrix.shape[1] == 1:
            return RowProjection(matrix, matrix[:, 0].abs())
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(matrix.shape[1], DIRECTIONS, dtype=torch.float64, generator=generator)
        return RowProjection(matrix @ directions.to(matrix.device), matrix.norm(dim=1))


def probe(
    graph: Graph, losses: Tensor, names: Sequence[str], usage: WeightUsage, frozen: Sequence[FrozenNorm]
) -> WeightUsage:
    """The usage with the rows of all uses filled in, for these losses alone.

    Raises UnsupportedOperationError, naming node and parameters, where examples are not independent.
    """
    if not usage.probed:
        return usage
    entering = _entering(graph, losses, usage, frozen)
    numbers = torch.arange(len(losses), device=losses.device)
    bits = (len(losses) - 1).bit_length()
    signs = torch.stack([torch.ones_like(numbers), *(1 - 2 * (numbers >> bit & 1) for bit in range(bits))])
    waiting = {use.index: use for use in usage.probed}
    found: dict[int, WeightUse | None] = {}
    while waiting:
        seen = _projections(graph, losses, usage, frozen, entering, waiting, signs)
        for index, use in list(waiting.items()):
            try:
                found[index] = _with_rows(graph, names, usage, use, seen[index], signs)
            except UnsupportedOperationError:
                if use.rule is None:
                    raise
                waiting[index] = replace(use, rule=None)  # its elements may have owners where whole rows have none
            else:
                del waiting[index]
    uses = [found[use.index] if use.is_probed else use for use in usage.uses]
    return replace(usage, uses=[use for use in uses if use is not None])


Projections = list[list[RowProjection | None]]  # by code and output


def _projections(
    graph: Graph,
    losses: Tensor,
    usage: WeightUsage,
    frozen: Sequence[FrozenNorm],
    entering: list[tuple[GradientEdge, Tensor, Tensor]],
    uses: dict[int, WeightUse],
    signs: Tensor,
) -> dict[int, Projections]:
    """What reaches the uses under each of the codes."""
    seen: dict[int, Projections] = {index: [] for index in uses}

    def project(index: int, grads: tuple[Tensor | None, ...]) -> None:
        seen[index].append([None if g is None else _project(graph, usage, uses[index], g) for g in grads])

    for code in signs:
        table = torch.cat([code, code.new_ones(1)])  # -1 takes the last
        signed = [g * table.to(g.dtype)[owners.to(g.device)] for _, g, owners in entering]
        roots = [edge for edge, _, _ in entering], signed
        visit_gradients(graph, losses, None, uses, project, frozen=frozen, roots=roots)
    return seen


def _entering(
    graph: Graph, losses: Tensor, usage: WeightUsage, frozen: Sequence[FrozenNorm]
) -> list[tuple[GradientEdge, Tensor, Tensor]]:
    """The gradients of the nodes above the unproven part, times random factors, and whose their elements are."""
    found: list[tuple[GradientEdge, Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)

    def take(index: int, grads: tuple[Tensor | None, ...]) -> None:
        for output, g in enumerate(grads):
            owners = usage.entering[index].get(output)
            if g is not None and owners is not None:
                factors = torch.rand(g.shape, generator=generator, dtype=torch.float32).add_(0.5).to(g)
                found.append((GradientEdge(graph.nodes[index], output), g.detach() * factors, owners))

    visit_gradients(graph, losses, torch.ones_like(losses), usage.entering, take, frozen=frozen)
    return found


def _project(graph: Graph, usage: WeightUsage, use: WeightUse, g: Tensor) -> RowProjection:
    shape = tuple(g.shape)
    if use.rule is None:
        return RowProjection.of(g, shape, range(len(shape)))
    shapes = {slot: usage.weights[k].shape for slot, k in use.slots.items()}
    return RowProjection.of(g, *use.rule.rows(graph.nodes[use.index], shapes, shape))


def _with_rows(
    graph: Graph,
    names: Sequence[str],
    usage: WeightUsage,
    use: WeightUse,
    by_code: Projections,
    signs: Tensor,
) -> WeightUse | None:
    """The use with its rows, or None where its gradients are undefined, which counts as zero."""
    n = signs.shape[1]
    if len(by_code) < len(signs):
        return None
    with error_context(graph.nodes[use.index], names, [usage.weights[k] for k in use.slots.values()]):
        owners = []
        for output in range(len(by_code[0])):
            projections = [code[output] for code in by_code]
            if any(p is None for p in projections):
                owners.append(None)
                continue
            owners.append(_owners([p for p in projections if p is not None], signs, usage))
        if use.rule is not None:
            return replace(use, rows=RowLayout.of(owners[0].cpu().numpy(), n))
        shapes = graph.shapes[use.index]
        return replace(use, owners=tuple(None if o is None else o.view(s) for o, s in zip(owners, shapes, strict=True)))


def _owners(projections: Sequence[RowProjection], signs: Tensor, usage: WeightUsage) -> Tensor:
    """The example that each row belongs to, (R,); -1 for rows of zeros, and a guess for rows that are not finite."""
    values = torch.stack([p.values for p in projections])  # (codes, R, K)
    norms = torch.stack([p.norms for p in projections]).amax(0)
    live = norms.isfinite() & (norms > 0)
    clearest = values[0].abs().argmax(1)[None, :, None].expand(len(values), -1, 1)
    measured = values.gather(2, clearest)[:, :, 0]  # (codes, R)
    tolerance = norms * (GPU_TOLERANCE if values.is_cuda else ROUNDING * torch.finfo(torch.float64).eps)
    changed = ((values.abs() - values[0].abs()).abs() > tolerance[:, None]).any(2).any(0)
    bits = ((measured * measured[0].sign())[1:] < 0).long()
    owner = (bits << torch.arange(len(bits), device=bits.device)[:, None]).sum(0)
    if changed[live].any() or (owner[live] >= signs.shape[1]).any():
        reasons = ", ".join(sorted(set(usage.unproven.values())))
        raise UnsupportedOperationError(f"the examples are not independent: its gradient mixes them ({reasons})")
    broken = ~norms.isfinite()
    found = torch.where(live, owner, -1)
    return _with_broken_rows(found, broken, signs.shape[1]) if broken.any() else found


def _with_broken_rows(owners: Tensor, broken: Tensor, n: int) -> Tensor:
    """Rows that are not finite have no signs: they go to the example that a regular layout has there, or to the first.

    So no such row is lost, and a norm that is not finite shows it.
    """
    rows = torch.arange(len(owners), device=owners.device)
    per_example = len(owners) // n if len(owners) % n == 0 else 0
    for inner in (k for k in range(per_example, 0, -1) if per_example % k == 0):
        regular = rows // inner % n
        if ((owners < 0) | (owners == regular)).all():
            return torch.where(broken, regular, owners)
    return torch.where(broken, 0, owners)
