"""Where a graph uses its parameters: which slots of which nodes hold weights, and whose rows their gradients have.

A weight is what a slot holds: a parameter, a parameter behind views and casts, or a tensor that all examples share and
that is computed from parameters (a normalised weight, a table of positions). It is derived from the proof of the
graph's layouts and remembered under all that the proof depends on.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.autograd_graph import LEAF, Graph, Node
from pyengm.pergrad.batch_norm.frozen import FrozenNorm
from pyengm.pergrad.layout import NOBODY, SHARED, UnprovenError, element_owners, locate, owners_along
from pyengm.pergrad.proof import Edge, Proof, prove
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.fallback import NodeCallGrad
from pyengm.pergrad.rules.weights import WeightRule, weight_rule_of

WAY_OUT = 'norms="exact" takes one backward pass per example instead'
MAX_REMEMBERED = 64  # graphs


@dataclass(frozen=True)
class WeightUse:
    """Node `index` holds weight number slots[k] in its slot k.

    rule: None where the node's own backward function gives the gradients. rows: for a rule; None where they are probed
    at every call. owners: for the node's own function, of the elements of its outputs; None where these are undefined.
    """

    index: int
    slots: dict[int, int]
    rule: WeightRule | None
    rows: RowLayout | None = None
    owners: tuple[Tensor | None, ...] = ()

    @property
    def is_probed(self) -> bool:
        return self.rows is None and not self.owners


@dataclass(frozen=True)
class Weight:
    """Output number `output` of node `index`, made of the parameters numbered leaves."""

    index: int
    output: int
    shape: torch.Size
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class TiedParams:
    """Parameters that share weights, and these weights. plain: one weight, a parameter but for views and casts."""

    leaves: tuple[int, ...]
    weights: tuple[int, ...]
    plain: bool


@dataclass(frozen=True)
class WeightUsage:
    """uses: of all weights. unproven: edges of the graph below which ownership is probed, with the reasons.

    entering: the proven nodes right above that part, and whose the elements of their outputs are.
    """

    uses: list[WeightUse]
    weights: list[Weight]
    groups: list[TiedParams]
    unproven: dict[Edge, str]
    entering: dict[int, dict[int, Tensor]]

    @property
    def probed(self) -> list[WeightUse]:
        return [use for use in self.uses if use.is_probed]


def find_usage(
    graph: Graph, n: int, params: Sequence[Tensor], names: Sequence[str], frozen: Sequence[FrozenNorm]
) -> tuple[WeightUsage, Proof]:
    """How this graph of n losses uses the parameters, and the proof of it.

    Raises UnsupportedOperationError for nodes whose gradients cannot be had, such as Python functions of the user.
    """
    proof = prove(graph, n, [norm.index for norm in frozen])
    wanted = {id(p): k for k, p in enumerate(params)}
    weights: list[Weight] = []
    number: dict[tuple, int] = {}
    slots: dict[int, dict[int, int]] = {}
    for index, slot, child, key, leaves in _uses(graph, proof, wanted):
        if key not in number:
            number[key] = len(weights)
            weights.append(Weight(*child, graph.shape(*child), leaves))
        slots.setdefault(index, {})[slot] = number[key]
    uses = [_use(graph, proof, n, names, index, of_node, weights) for index, of_node in slots.items()]
    computed = {number[key] for key in number if key[0] == "computed"}
    entering = _entering(graph, proof) if any(use.is_probed for use in uses) else {}
    return WeightUsage(uses, weights, _groups(weights, computed), proof.unproven, entering), proof


def _uses(
    graph: Graph, proof: Proof, wanted: dict[int, int]
) -> Iterator[tuple[int, int, tuple[int, int], tuple, tuple[int, ...]]]:
    """(index, slot, child, key of the weight, its leaves) for every slot with a weight in it."""
    reaches = graph.above(
        k for k, node in enumerate(graph.nodes) if node.name() == LEAF and id(node.variable) in wanted
    )
    pure = proof.pure
    for index, node in enumerate(graph.nodes):
        layouts = proof.layouts[index]
        if node.name() == LEAF or (index not in proof.probed and not _has_owner(layouts)):
            continue
        if index in proof.probed and pure[index]:
            continue
        for slot, child in enumerate(graph.children[index]):
            if child is None or (child[0] not in reaches and graph.leaf(child[0]) is None):
                continue
            shared = proof.layouts[child[0]].get(child[1]) == SHARED and (index, slot) not in proof.unproven
            leaf, chain = graph.leaf_below(child[0])
            if leaf is not None and (
                shared or (pure[child[0]] and (index in proof.probed or graph.leaf(child[0]) is not None))
            ):
                if id(leaf) in wanted:
                    yield index, slot, child, (wanted[id(leaf)], chain), (wanted[id(leaf)],)
            elif shared or (index in proof.probed and pure[child[0]]):
                yield index, slot, child, ("computed", *child), _leaves(graph, child[0], wanted)


def _entering(graph: Graph, proof: Proof) -> dict[int, dict[int, Tensor]]:
    above = [
        index
        for index, children in enumerate(graph.children)
        if index not in proof.probed
        and _has_owner(proof.layouts[index])
        and any(child is not None and child[0] in proof.probed for child in children)
    ]
    found: dict[int, dict[int, Tensor]] = {}
    for index in above:
        owners = {output: _element_owners(proof, graph, index, output) for output in proof.layouts[index]}
        found[index] = {output: tensor for output, tensor in owners.items() if tensor is not None}
    return found


def _has_owner(layouts: dict) -> bool:
    return bool(layouts) and SHARED not in layouts.values() and any(layout != NOBODY for layout in layouts.values())


def _leaves(graph: Graph, index: int, wanted: dict[int, int]) -> tuple[int, ...]:
    """The parameters that a node is computed from."""
    leaves = (graph.leaf(k) for k in {index} | graph.below([index]))
    return tuple(sorted(wanted[id(leaf)] for leaf in leaves if leaf is not None and id(leaf) in wanted))


def _use(
    graph: Graph,
    proof: Proof,
    n: int,
    names: Sequence[str],
    index: int,
    slots: dict[int, int],
    weights: Sequence[Weight],
) -> WeightUse:
    node = graph.nodes[index]
    shapes = {slot: weights[k].shape for slot, k in slots.items()}
    rule = weight_rule_of(node, shapes)
    with error_context(node, names, [weights[k] for k in slots.values()]):
        if index in proof.probed:
            return WeightUse(index, slots, rule)
        if rule is not None:
            layout = proof.layouts[index].get(0, NOBODY)
            view, axes = rule.rows(node, shapes, graph.shapes[index][0])
            with contextlib.suppress(UnprovenError):
                return WeightUse(index, slots, rule, RowLayout.of(element_owners(layout, view, axes), n))
        if not callable(node):
            raise UnsupportedOperationError("there is no rule for it, and its backward function cannot be called")
        owners = [_element_owners(proof, graph, index, k) for k in range(len(graph.shapes[index]))]
        return WeightUse(index, slots, None, None, tuple(owners))


def _element_owners(proof: Proof, graph: Graph, index: int, output: int) -> Tensor | None:
    layout, shape = proof.layouts[index].get(output), graph.shapes[index][output]
    if layout is None:
        return None
    if layout.is_constant or not shape:
        return torch.full([1] * len(shape), layout.owners[0])
    try:
        axis, _ = locate(layout, shape)
    except UnprovenError:
        flat = torch.arange(torch.Size(shape).numel()) // layout.step % len(layout.owners)
        return torch.tensor(layout.owners)[flat].view(shape)
    owners = owners_along(layout, shape, axis)
    assert owners is not None
    return NodeCallGrad.owners_of(owners, shape, axis)


def _groups(weights: list[Weight], computed: set[int]) -> list[TiedParams]:
    """Parameters that lie in one weight belong together."""
    groups: list[tuple[set[int], set[int]]] = []
    for k, weight in enumerate(weights):
        leaves, members = set(weight.leaves), {k}
        for group in [group for group in groups if group[0] & leaves]:
            groups.remove(group)
            leaves |= group[0]
            members |= group[1]
        groups.append((leaves, members))
    return [TiedParams(tuple(sorted(a)), tuple(sorted(b)), len(b) == 1 and not b & computed) for a, b in groups]


def with_way_out(message: str) -> str:
    """The message with what helps in its case."""
    return message if WAY_OUT in message else f"{message}; {WAY_OUT}"


@contextlib.contextmanager
def error_context(node: Node, names: Sequence[str], weights: Iterable[Weight]) -> Iterator[None]:
    """Puts the node and its parameters in front of an UnsupportedOperationError."""
    try:
        yield
    except UnsupportedOperationError as error:
        leaves = sorted({leaf for weight in weights for leaf in weight.leaves})
        what = " and ".join(names[k] for k in leaves)
        message = with_way_out(f"{node.name()}, which takes parameter {what}: {error}")
        raise UnsupportedOperationError(message) from None


@dataclass
class Remembered:
    """How a graph uses the parameters, the proof of it, and whether norms have been compared with exact ones."""

    usage: WeightUsage
    proof: Proof
    verified: bool = False


_remembered: OrderedDict[Hashable, Remembered] = OrderedDict()  # by the key of the graph


def get(key: Hashable, graph: Graph) -> Remembered | None:
    """What `put` has remembered under this key, where the proof of it holds for the graph."""
    known = _remembered.get(key)
    if known is None or not known.proof.holds_for(graph):
        return None
    _remembered.move_to_end(key)
    return known


def put(key: Hashable, usage: WeightUsage, proof: Proof) -> Remembered:
    """Remembers a usage under the key of its graph and parameters, and forgets the one that was longest out of use."""
    _remembered[key] = known = Remembered(usage, proof)
    while len(_remembered) > MAX_REMEMBERED:
        _remembered.popitem(last=False)
    return known
