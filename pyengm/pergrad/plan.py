"""Where a graph uses its parameters: which slots of which nodes hold weights, and whose rows their gradients have.

A weight is what a slot holds: a parameter, a parameter behind views and casts, or a tensor computed from parameters
alone (a normalised weight, say). Found out once for each structure of graph, and remembered.
"""

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.frozen import FrozenNorm
from pyengm.pergrad.graph import LEAF, TRANSPARENT, Graph, Node
from pyengm.pergrad.passes import visit_gradients
from pyengm.pergrad.rows import MIXING_TOLERANCE, Rows, Sketch, rows_of, sign_codes
from pyengm.pergrad.rules import RULES, rule_of

# Where these find a parameter in one of their slots, their rows decide alone whether they serve it.
DIRECT = {
    "AddmmBackward0",
    "ConvolutionBackward0",
    "CudnnBatchNormBackward0",
    "EmbeddingBackward0",
    "MmBackward0",
    "NativeBatchNormBackward0",
    "NativeGroupNormBackward0",
    "NativeLayerNormBackward0",
    "PreluKernelBackward0",
}
STATUS_CODES = 4  # an element that two examples share keeps its size under a code of random signs every other time
KNOWN_GRAPHS = 64


@dataclass(frozen=True)
class Use:
    """Node `place` holds weight number slots[k] in its slot k."""

    place: int
    slots: dict[int, int]
    rows: Rows


@dataclass(frozen=True)
class Weight:
    """Output number `output` of node `place`, made of the parameters numbered leaves."""

    place: int
    output: int
    shape: torch.Size
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Parameters that share weights, and these weights. plain: one weight, a parameter but for views and casts."""

    leaves: tuple[int, ...]
    weights: tuple[int, ...]
    plain: bool


@dataclass(frozen=True)
class Plan:
    """quiet: nodes above parameters whose output gradients were zero; the plan holds while they stay zero.
    broken: gradients that are not finite left something open, so that the plan is for these losses alone."""

    uses: list[Use]
    weights: list[Weight]
    groups: list[Group]
    quiet: frozenset[int]
    broken: bool

    @property
    def certain(self) -> bool:
        """Whether it holds for every graph of this structure."""
        return not self.quiet and all(use.rows.silent is None for use in self.uses)


class StalePlanError(Exception):
    """A gradient that was zero when the plan was made is not zero any more."""


def find_plan(graph: Graph, losses: Tensor, params: Sequence[Tensor], frozen: Sequence[FrozenNorm]) -> Plan:
    """How this graph uses the parameters. Raises UnsupportedOperationError for what no rule serves."""
    wanted = {id(p): k for k, p in enumerate(params)}
    _, silent = _survey(graph, losses, frozen, codes=0)
    quiet = silent & graph.above(_places(graph, wanted))
    try:
        return _plan(graph, losses, params, frozen, _direct_slots(graph, wanted), quiet)
    except (
        _IndirectError,
        UnsupportedOperationError,
    ):  # rows may mix where a node that takes data elsewhere takes weights alone
        shared, _ = _survey(graph, losses, frozen, codes=STATUS_CODES)
    return _plan(graph, losses, params, frozen, _slots(graph, params, wanted, shared, silent), quiet)


class _IndirectError(Exception):
    """A parameter lies behind more than views and casts."""


# place -> slot -> (child, output, key of the weight, leaves)
Found = dict[int, dict[int, tuple[int, int, tuple, tuple[int, ...]]]]


def _direct_slots(graph: Graph, wanted: dict[int, int]) -> Found:
    found: Found = {}
    for place, node in enumerate(graph.nodes):
        name = node.name()
        if name in TRANSPARENT:
            continue
        for slot, child in enumerate(graph.children[place]):
            if child is None:
                continue
            leaf, chain = graph.leaf_below(child[0])
            if leaf is not None and id(leaf) in wanted:
                if name not in DIRECT or slot not in RULES[name].slots:
                    raise _IndirectError
                k = wanted[id(leaf)]
                found.setdefault(place, {})[slot] = (*child, (k, chain), (k,))
    return found


def _slots(graph: Graph, params: Sequence[Tensor], wanted: dict[int, int], shared: set[int], silent: set[int]) -> Found:
    """shared, silent: the nodes whose output gradients are sums over the examples, and are zero."""
    found: Found = {}
    reaches = graph.above(_places(graph, wanted))
    for place, node in enumerate(graph.nodes):
        if place in shared or place in silent or graph.leaf_below(place)[0] is not None:
            continue
        for slot, child in enumerate(graph.children[place]):
            if child is None:
                continue
            leaf, chain = graph.leaf_below(child[0])
            if leaf is not None:
                if id(leaf) not in wanted:
                    continue
                key, leaves = (wanted[id(leaf)], chain), (wanted[id(leaf)],)
            elif child[0] in shared and child[0] in reaches:
                leaves = _leaves(graph, params, child[0], shared, wanted)
                key = ("computed", *child)
            else:
                continue
            name = node.name()
            if rule_of(node, [slot]) is None or (leaf is None and name not in RULES):
                raise UnsupportedOperationError(
                    f"{name} takes {_what(params, leaves)} in its slot {slot}, for which there is no rule"
                )
            found.setdefault(place, {})[slot] = (*child, key, leaves)
    return found


def _places(graph: Graph, wanted: dict[int, int]) -> list[int]:
    """Where the parameters themselves are."""
    return [k for k, node in enumerate(graph.nodes) if node.name() == LEAF and id(node.variable) in wanted]


def _leaves(
    graph: Graph, params: Sequence[Tensor], place: int, shared: set[int], wanted: dict[int, int]
) -> tuple[int, ...]:
    """The parameters below a node that is computed from parameters alone."""
    leaves, seen, stack = set(), {place}, [place]
    while stack:
        k = stack.pop()
        node = graph.nodes[k]
        if node.name() == LEAF:
            if id(node.variable) in wanted:
                leaves.add(wanted[id(node.variable)])
        elif k not in shared and graph.leaf_below(k)[0] is None:
            raise UnsupportedOperationError(
                f"{graph.nodes[place].name()} mixes examples: it takes sums over them and {node.name()}"
            )
        else:
            for child in graph.children[k]:
                if child is not None and child[0] not in seen:
                    seen.add(child[0])
                    stack.append(child[0])
    return tuple(sorted(leaves))


def _survey(graph: Graph, losses: Tensor, frozen: Sequence[FrozenNorm], codes: int) -> tuple[set[int], set[int]]:
    """The nodes whose output gradients sum over examples, and those whose output gradients are zero.

    Under losses of random signs an element of one example keeps its size and an element of several changes it.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (codes, len(losses)), generator=generator).mul_(2).sub_(1)
    samples: dict[int, Tensor] = {}
    values: dict[int, list[Tensor]] = {}

    def look(place: int, g: Tensor) -> None:
        g = g.flatten()
        if place not in samples:  # the largest and an even sample of the others
            top = g.abs().topk(min(64, len(g))).indices
            samples[place] = torch.cat([top, torch.arange(0, len(g), max(1, len(g) // 512), device=g.device)])
        values.setdefault(place, []).append(g[samples[place]].double().abs())

    inner = [k for k, node in enumerate(graph.nodes) if node.name() != LEAF]
    for code in (torch.ones(len(losses)), *signs):
        visit_gradients(graph, losses, code.to(losses), inner, look, frozen=frozen)
    silent = set(inner) - {place for place, sizes in values.items() if sizes[0].any()}
    shared = set()
    for place in values.keys() - silent:
        first, *others = values[place]
        fine = first.isfinite()
        first, others = first[fine], [size[fine] for size in others]
        if any(((size - first).abs() > MIXING_TOLERANCE * first.max()).any() for size in others if len(first)):
            shared.add(place)
    return shared, silent


def _plan(
    graph: Graph, losses: Tensor, params: Sequence[Tensor], frozen: Sequence[FrozenNorm], found: Found, quiet: set[int]
) -> Plan:
    weights: list[Weight] = []
    number: dict[tuple, int] = {}
    slots: dict[int, dict[int, int]] = {}
    for place, by_slot in found.items():
        for slot, (child, output, key, leaves) in by_slot.items():
            if key not in number:
                number[key] = len(weights)
                weights.append(Weight(child, output, graph.shape(child, output), leaves))
            slots.setdefault(place, {})[slot] = number[key]
    rows, broken = _find_rows(graph, losses, params, frozen, slots, weights)
    uses = [Use(place, slots[place], rows[place]) for place in slots if place in rows]
    computed = {number[key] for key in number if key[0] == "computed"}
    return Plan(uses, weights, _groups(weights, computed), frozenset(quiet | (slots.keys() - rows.keys())), broken)


def _groups(weights: list[Weight], computed: set[int]) -> list[Group]:
    """Parameters that lie in one weight belong together."""
    groups: list[tuple[set[int], set[int]]] = []
    for k, weight in enumerate(weights):
        leaves, members = set(weight.leaves), {k}
        for group in [group for group in groups if group[0] & leaves]:
            groups.remove(group)
            leaves |= group[0]
            members |= group[1]
        groups.append((leaves, members))
    return [Group(tuple(sorted(a)), tuple(sorted(b)), len(b) == 1 and not b & computed) for a, b in groups]


def _find_rows(
    graph: Graph,
    losses: Tensor,
    params: Sequence[Tensor],
    frozen: Sequence[FrozenNorm],
    slots: dict[int, dict[int, int]],
    weights: list[Weight],
) -> tuple[dict[int, Rows], bool]:
    """Whose rows the output gradients have, except where these are zero; and whether some are not finite."""
    signs = sign_codes(losses)
    sketches: dict[int, list[Sketch]] = {place: [] for place in slots}

    def sketch(place: int, g: Tensor) -> None:
        node = graph.nodes[place]
        shapes = {slot: weights[k].shape for slot, k in slots[place].items()}
        rule = rule_of(node, shapes)
        assert rule is not None  # uses without a rule were an error
        with naming(node, params, [weights[k] for k in slots[place].values()]):
            sketches[place].append(Sketch.of(rule.rows(node, shapes, g)))

    for code in signs:
        visit_gradients(graph, losses, code, slots, sketch, frozen=frozen)
    fitting: dict[int, list[Rows]] = {}
    totals: dict[int, int] = {}
    for place, seen in sketches.items():
        if len(seen) == len(signs) and seen[0].sizes.any():
            totals[place] = len(seen[0].sizes)
            with naming(graph.nodes[place], params, [weights[k] for k in slots[place].values()]):
                fitting[place] = rows_of(seen, signs)
    # Where zeros leave several layouts open, that of other gradients with as many rows is the likeliest.
    known = {totals[place]: rows[0].inner for place, rows in fitting.items() if rows[0].silent is None}
    chosen = {}
    for place, rows in fitting.items():
        chosen[place] = next((r for r in rows if r.order is None and r.inner == known.get(totals[place])), rows[0])
    broken = any(not seen[0].sizes.isfinite().all() for seen in sketches.values() if seen)
    return chosen, broken


@contextlib.contextmanager
def naming(node: Node, params: Sequence[Tensor], weights: Iterable[Weight]) -> Iterator[None]:
    """Says in an UnsupportedOperationError which node and parameters it is about."""
    try:
        yield
    except UnsupportedOperationError as error:
        leaves = sorted({leaf for weight in weights for leaf in weight.leaves})
        raise UnsupportedOperationError(f"{node.name()}, which takes {_what(params, leaves)}: {error}") from None


def _what(params: Sequence[Tensor], leaves: Sequence[int]) -> str:
    return "parameter " + " and ".join(f"{k} of shape {tuple(params[k].shape)}" for k in leaves)


# signature -> a plan or why there is none, and the parameters it was found out for
_known: OrderedDict[tuple, tuple[Plan | str, tuple[weakref.ref, ...]]] = OrderedDict()


def recall(graph: Graph, params: Sequence[Tensor]) -> Plan | str | None:
    """What `remember` has stored for these parameters in a graph of this structure."""
    key = _key(graph, params)
    value, alive = _known.get(key, (None, ()))
    if key in _known:
        _known.move_to_end(key)
    # The number id() of a parameter that is gone may have passed to another one.
    return value if [id(ref()) for ref in alive] == [id(p) for p in params] else None


def remember(graph: Graph, params: Sequence[Tensor], value: Plan | str) -> None:
    _known[_key(graph, params)] = (value, tuple(map(weakref.ref, params)))
    while len(_known) > KNOWN_GRAPHS:
        _known.popitem(last=False)


def forget(graph: Graph, params: Sequence[Tensor]) -> None:
    _known.pop(_key(graph, params), None)


def _key(graph: Graph, params: Sequence[Tensor]) -> tuple:
    return graph.signature, tuple(map(id, params))
