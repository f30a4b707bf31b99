"""The proof of a graph's layouts: whose the elements of every gradient are, derived node by node from the losses down.

A tensor that examples share is a weight: a parameter, a table computed from parameters, or a sum over the batch that
nothing else than weights lies below. Where a shared tensor is made of activations that belong to single examples as
well, the examples are not independent, or the contents of a constant decide (a mask, a one-hot matrix). There, and
below nodes without a rule, nothing is proven: ownership is probed at every call, for the part of the graph below that
edge alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from pyengm.pergrad.autograd_graph import LEAF, TRANSPARENT, Graph
from pyengm.pergrad.hooks import recomputed_once
from pyengm.pergrad.layout import NOBODY, SHARED, Layout, Shape, UnprovenError, merge, one_per_loss
from pyengm.pergrad.rules import LAYOUT_RULES
from pyengm.pergrad.rules.registry import Contents, NodeView, contents_of

Edge = tuple[int, int]  # a node and one of its input slots

# Of parameters alone these make what is a parameter still; more in this list saves probing, and cannot make it wrong.
PURE_NAMES = """
    Abs Add Addmm AsStrided Bmm Cat Clamp ClampMax ClampMin Clone ConstantPadNd Cos Cumsum Diagonal Div Elu Embedding
    Erf Exp Expand Expm1 Flip Gather Gelu Index IndexSelect Lerp LinalgVectorNorm Log Log1P LogSigmoid LogSoftmax
    Logsumexp MaskedFill Maximum Mean Minimum Mm Mul Neg Norm Pow Prod Reciprocal Relu Repeat Roll Rsqrt Rsub Select
    Sigmoid Silu Sin Slice Softmax Softplus Split SplitWithSizes Sqrt Stack StdMean Sub Sum Tanh Tril Triu Unbind
    Unfold Var VarMean ViewAsComplex ViewAsReal WeightNormInterface Where
"""
PURE = TRANSPARENT | {f"{name}Backward{k}" for name in PURE_NAMES.split() for k in range(3)}

# Of these a constant operand is a constant like any other where it does not enlarge the result: it holds no batch.
ELEMENTWISE_NAMES = "Add Div Lerp MaskedFill Maximum Minimum Mul Pow Sub Where"
ELEMENTWISE = {f"{name}Backward0" for name in ELEMENTWISE_NAMES.split()}

LOOKUPS = {"EmbeddingBackward0", "GatherBackward0", "IndexBackward0", "IndexSelectBackward0"}

# The saved operands of products: the derivative of the one in slot 0 is the first, of the one in slot 1 the second.
OPERANDS = {"MulBackward0": ("other", "self"), "DivBackward0": ("other", "self")}


@dataclass
class Proof:
    """layouts[k][output]: of the gradients of node k's outputs; absent in the unproven part.

    unproven: edges below which ownership has to be probed, with the reason. probed: the nodes there. pure: whether a
    node is made of parameters alone. contents: nodes whose rule read values, where, and a digest of these.
    """

    layouts: list[dict[int, Layout]]
    unproven: dict[Edge, str] = field(default_factory=dict)
    probed: set[int] = field(default_factory=set)
    pure: list[bool] = field(default_factory=list)
    contents: list[tuple[int, Contents, bytes]] = field(default_factory=list)

    def holds_for(self, graph: Graph) -> bool:
        """Whether the values of the indices that the proof has read are those of this graph."""
        return all(digest(contents_of(graph.fields[index], where)) == found for index, where, found in self.contents)


def digest(values: Tensor) -> bytes:
    """A digest of the values of a tensor."""
    return hashlib.sha256(values.detach().contiguous().cpu().numpy().tobytes()).digest()


def prove(graph: Graph, n: int, frozen: Sequence[int] = ()) -> Proof:
    """The layouts of the graph of n losses. frozen: batch norms whose statistics count as constants."""
    pure = _pure_nodes(graph, n)
    unproven: dict[Edge, str] = {}
    while True:
        attempt = _Attempt(graph, n, set(frozen), pure, unproven)
        attempt.run()
        found = attempt.sources()
        if not found:
            return attempt.proof
        unproven = attempt.proof.unproven | found


def _pure_nodes(graph: Graph, n: int) -> list[bool]:
    """Whether a node's output is made of parameters alone."""
    pure = [False] * len(graph.nodes)
    for k in range(len(graph.nodes) - 1, -1, -1):
        name, children = graph.nodes[k].name(), graph.children[k]
        if name == LEAF:
            pure[k] = True
        elif name in PURE and any(child is not None for child in children):
            looks_up = name in LOOKUPS and _seems_per_example(graph.shapes[k][0], n)
            pure[k] = not looks_up and all(
                pure[child[0]] if child is not None else _holds_no_batch(graph, k, slot, n)
                for slot, child in enumerate(children)
            )
    return pure


def _seems_per_example(shape: Shape, n: int) -> bool:
    """Whether a tensor seems to have rows for each example, as tokens (n, T, D) have and positions (1, T, D) not."""
    return len(shape) > 1 and shape[0] > 1 and n in shape[:-1]


def _holds_no_batch(graph: Graph, index: int, slot: int, n: int) -> bool:
    """Whether an operand without a gradient is a number, or no larger than those with one and not per example."""
    node, shape = graph.nodes[index], graph.shapes[index][0]
    if node.name() in ELEMENTWISE and not _seems_per_example(shape, n):
        sizes = [prod(of_input) for of_input in graph.input_shapes(index) if of_input is not None]
        if prod(shape) <= max(sizes):
            return True
    operands = OPERANDS.get(node.name())
    if operands is None or slot > 1:
        return False
    with recomputed_once():
        value = getattr(node, f"_saved_{operands[1 - slot]}", None)
    return value is None or value.dim() == 0


class _Attempt:
    """One pass from the losses down, with a set of edges below which nothing is proven."""

    def __init__(self, graph: Graph, n: int, frozen: set[int], pure: list[bool], unproven: dict[Edge, str]):
        self.graph, self.frozen, self.pure = graph, frozen, pure
        self.proof = Proof([{} for _ in graph.nodes], dict(unproven), pure=pure)
        self.proof.layouts[0][graph.root] = one_per_loss(n)
        self.shared_by: dict[int, set[Edge]] = {}  # for shared nodes: the edges at which that began
        self.conflicts: set[int] = set()

    def run(self) -> None:
        for index, node in enumerate(self.graph.nodes):
            if node.name() != LEAF:
                self._descend(index)

    def sources(self) -> dict[Edge, str]:
        """The edges at which tensors became shared that belong to single examples elsewhere."""
        names = self.graph.nodes
        return {
            edge: f"{names[edge[0]].name()} sums over examples in its slot {edge[1]}"
            for index in self.conflicts
            for edge in self.shared_by.get(index, ())
        }

    def _descend(self, index: int) -> None:
        proof, children = self.proof, self.graph.children[index]
        if index in proof.probed:
            for slot, child in enumerate(children):
                if child is not None and self._is_weight(child[0]):
                    self._arrive(index, slot, child, SHARED)  # a weight here, and so wherever else it is used
                elif child is not None:
                    proof.probed.add(child[0])
            return
        below = self._below(index) if proof.layouts[index] else [None] * len(children)
        for slot, (child, layout) in enumerate(zip(children, below, strict=True)):
            if child is None or layout is None:
                continue
            if (index, slot) in proof.unproven:
                proof.probed.add(child[0])
            else:
                self._arrive(index, slot, child, layout)

    def _below(self, index: int) -> Sequence[Layout | None]:
        """The layouts of the input gradients; what no rule decides goes among the unproven edges."""
        layouts, children = self.proof.layouts[index], self.graph.children[index]
        if SHARED in layouts.values():
            if any(layout not in (SHARED, NOBODY) for layout in layouts.values()):
                self.conflicts.add(index)
            return [SHARED] * len(children)
        try:
            return self._rule(index)
        except UnprovenError as reason:
            for slot, child in enumerate(children):
                if child is not None and not self._is_weight(child[0]):
                    self.proof.unproven.setdefault((index, slot), f"{self.graph.nodes[index].name()}: {reason}")
            return [SHARED] * len(children)

    def _is_weight(self, index: int) -> bool:
        return self.pure[index]

    def _rule(self, index: int) -> Sequence[Layout | None]:
        graph, node = self.graph, self.graph.nodes[index]
        name = node.name()
        if name not in LAYOUT_RULES:
            raise UnprovenError("there is no layout rule for it")
        first = graph.children[index][0] if graph.children[index] else None
        fields = graph.fields[index]
        if index in self.frozen:
            fields = {**fields, "training": False}
        child = "" if first is None else graph.nodes[first[0]].name()
        view = NodeView(name, graph.shapes[index], graph.input_shapes(index), fields, child)
        below = LAYOUT_RULES[name](view, self.proof.layouts[index])
        for where in view.read_contents:
            self.proof.contents.append((index, where, digest(contents_of(fields, where))))
        return below

    def _arrive(self, index: int, slot: int, child: tuple[int, int], layout: Layout) -> None:
        at, output = child
        if at in self.proof.probed:
            return
        if 0 in self.graph.shapes[at][output]:
            layout = NOBODY  # a tensor without elements
        before = self.proof.layouts[at].get(output)
        after = layout if before is None else merge(before, layout)
        if after is None:
            after = SHARED
            if not self._is_weight(at):
                self.conflicts.add(at)
        if layout == SHARED:
            began = self.shared_by.get(index) if SHARED in self.proof.layouts[index].values() else None
            self.shared_by.setdefault(at, set()).update(began or {(index, slot)})
        elif after == SHARED and before not in (None, SHARED):
            self.shared_by.setdefault(at, set()).add((index, slot))  # two examples' own parts overlap
        self.proof.layouts[at][output] = after
