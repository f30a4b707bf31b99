"""Per-example gradients from one backward pass over the autograd graph."""

import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad import weight_usage
from pyengm.pergrad.autograd_graph import Graph, trace
from pyengm.pergrad.batch_norm.frozen import FrozenNorm, Sums, frozen_norms, upstream_layers
from pyengm.pergrad.batch_norm.projection import Bases, LayerSketch, correct_bias, first_basis, is_layer, refine, sketch
from pyengm.pergrad.hooks import full_precision, visit_gradients
from pyengm.pergrad.per_example_grad import DenseGrad, PerExampleGrad, StackedGrads, merge, on_device, row_squares
from pyengm.pergrad.probe import probe
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.fallback import NodeCallGrad
from pyengm.pergrad.rules.weights import to_float32
from pyengm.pergrad.validation import (
    Params,
    check_losses,
    check_own_statistics,
    check_plain,
    check_reached,
    check_visible,
    named_params,
)
from pyengm.pergrad.verify import ExactNorms, is_verified, verify
from pyengm.pergrad.weight_usage import Remembered, TiedParams, WeightUsage, WeightUse, error_context, with_way_out

CHUNK = 16  # examples of a batched pass on a GPU


def prepare(losses: Tensor, params: Params) -> "PerExampleBackward":
    """Finds the parameters in the graph of the losses (n,); nothing in it is changed.

    The first call for a graph's structure and shapes derives the owners of all gradients; the first one for its
    structure alone compares two norms with exact derivatives, where batch statistics leave the examples independent.
    Raises UnsupportedOperationError for what no rule supports, where examples are not independent and where the
    comparison fails, and what `exact_norms` raises.
    """
    check_losses(losses)
    tensors, names = named_params(params)
    graph = trace(losses)
    check_visible(graph)
    check_own_statistics(graph)
    check_reached(graph, tensors)
    frozen = frozen_norms(graph)
    try:
        check_plain(graph, tensors, names)
        key = graph.key(tensors), len(losses)
        known = weight_usage.get(key, graph)
        if known is None:
            keep_freed_memory()
            usage, proof = weight_usage.find_usage(graph, len(losses), tensors, names, frozen)
            known = weight_usage.put(key, usage, proof)
            known.verified = bool(frozen) or is_verified(graph, tensors)
            if usage.probed:
                warn_of_probing(usage, len(losses))
        usage = probe(graph, losses, names, known.usage, frozen)
    except (UnsupportedOperationError, CheckpointError) as error:
        raise UnsupportedOperationError(with_way_out(str(error))) from error
    return PerExampleBackward(losses, tensors, names, graph, usage, frozen, known)


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MiB of freed memory, which a pass on the CPU would else give back and fault in again.

    glibc returns the top of its heap whenever more than twice its mmap threshold is free there. The threshold grows to
    the largest mapped block that was freed, 32 MiB at most; this frees one of nearly that size, which nobody touches.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def warn_of_probing(usage: WeightUsage, n: int) -> None:
    """Says once for each structure of graph what its norms cost, and why."""
    reasons = "; ".join(sorted(set(usage.unproven.values())))
    warnings.warn(
        f"at every call {(n - 1).bit_length() + 1} further passes through a part of the graph find out whose its "
        f"gradients are, as no proof can: {reasons}",
        stacklevel=2,
    )


@dataclass
class PerExampleBackward:
    """Losses with their graph, and where it uses the parameters; made by `prepare`.

    frozen: batch norms whose statistics make the examples depend on each other. known: whether norms of this structure
    of graph have been verified.
    """

    losses: Tensor
    params: list[Tensor]
    names: list[str]
    graph: Graph
    usage: WeightUsage
    frozen: list[FrozenNorm]
    known: Remembered

    def squares(
        self,
        *,
        inputs: Tensor | None = None,
        kept: dict[int, PerExampleGrad] | None = None,
        sketches: "Sketches | None" = None,
    ) -> tuple[Tensor, Tensor | None]:
        """||dL_i / d group||^2 for the groups of parameters, (groups, n) float64, and the gradient of given inputs.

        Batch statistics count as constants. kept: takes the gradients of every weight, for `deliver`; the graph's
        activations are then freed on the way, unless they may be needed once more. sketches: takes what corrects the
        squares of layers; those of biases come out corrected.
        Raises UnsupportedOperationError where the first norms of a structure of graph are wrong.
        """
        if self.known.verified:
            return self._squares(inputs, kept, sketches)
        try:
            exact = ExactNorms.of(self.losses, self.params, self.usage)
            total, input_gradient = self._squares(inputs, kept, sketches)
            self.known.verified = verify(exact, self.params, self.names, self.graph, self.usage, total)
        except (UnsupportedOperationError, CheckpointError) as error:
            raise UnsupportedOperationError(with_way_out(str(error))) from error
        return total, input_gradient

    def _squares(
        self,
        inputs: Tensor | None,
        kept: dict[int, PerExampleGrad] | None,
        sketches: "Sketches | None",
    ) -> tuple[Tensor, Tensor | None]:
        groups = self.usage.groups
        total = torch.zeros(len(groups), len(self.losses), dtype=torch.float64, device=self.losses.device)
        pending: dict[int, PerExampleGrad] = {}
        small: dict[int, DenseGrad] = {}
        found: dict[int, Tensor] = {}  # (n,) squares of groups, which are put into total at once
        group_of = {k: row for row, group in enumerate(groups) for k in group.weights}
        plain = [self._is_plain(group) for group in groups]

        def done(k: int, gradient: PerExampleGrad) -> None:
            group = group_of[k]
            if kept is not None:
                gradient = kept[k] = gradient.stored()
            if plain[group] and isinstance(gradient, DenseGrad) and StackedGrads.takes(gradient):
                small[k] = gradient
            elif plain[group]:
                found[group] = gradient.squares()
            else:
                pending[k] = gradient

        with full_precision(self.losses.device):
            input_gradient = self._collect(done, inputs, kept is not None, sketches)
            for row, group in enumerate(groups):
                if not plain[row] and any(k in pending for k in group.weights):
                    found[row] = self._pulled_squares(group, pending)
            if small:
                _put_rows(total, [group_of[k] for k in small], StackedGrads(small).squares())
            for dtype in {squares.dtype for squares in found.values()}:
                some = {row: squares for row, squares in found.items() if squares.dtype == dtype}
                _put_rows(total, list(some), torch.stack(list(some.values())))
        return total, input_gradient

    def gradients(self, inputs: Tensor | None) -> tuple[dict[int, PerExampleGrad], Tensor | None]:
        """The gradients of every weight for `deliver`, without norms, and that of the inputs; activations are freed."""
        if not self.known.verified:
            self.squares()
        kept: dict[int, PerExampleGrad] = {}
        with full_precision(self.losses.device):
            input_gradient = self._collect(kept.__setitem__, inputs, True, None)
        return kept, input_gradient

    def deliver(self, kept: dict[int, PerExampleGrad], weights: Tensor) -> None:
        """Adds sum_i weights_i g_i to .grad of the parameters, through autograd, so that hooks and reducers run."""
        if kept:
            with full_precision(self.losses.device):
                small = {
                    k: gradient
                    for k, gradient in kept.items()
                    if isinstance(gradient, DenseGrad) and StackedGrads.takes(gradient)
                }
                grads = StackedGrads(small).weighted(weights) if small else {}
                grads |= {k: gradient.weighted(weights) for k, gradient in kept.items() if k not in small}
            torch.autograd.backward([self.edge(k) for k in grads], list(grads.values()))

    def edge(self, k: int) -> GradientEdge:
        """Where the gradient of weight k flows."""
        weight = self.usage.weights[k]
        return GradientEdge(self.graph.nodes[weight.index], weight.output)

    def sketched(self) -> dict[int, int]:
        """Weights of layers whose gradients pass through batch statistics too, and their groups."""
        # A weight in slot 0 takes its input from behind, as in W x.
        below = self.graph.below([norm.index for norm in self.frozen])
        uses = Counter(k for use in self.usage.uses for k in use.slots.values())
        layers = {
            k for use in self.usage.uses if use.index in below and use.rule for slot, k in use.slots.items() if slot
        }
        group_of = {group.weights[0]: row for row, group in enumerate(self.usage.groups) if self._is_plain(group)}
        return {k: group_of[k] for k in sorted(layers & group_of.keys()) if uses[k] == 1}

    def _is_plain(self, group: TiedParams) -> bool:
        """Whether the gradients of the parameter are those of its one weight; hooks may change them."""
        return group.plain and not any(self.params[k]._backward_hooks for k in group.leaves)

    def refine(self, old: Bases) -> Bases:
        """Takes a step from the old bases of layers, or from random ones, toward those of the batch's inputs."""
        group_of, bases = self.sketched(), Bases()

        def done(k: int, gradient: PerExampleGrad) -> None:
            if k in group_of and is_layer(gradient):
                row = group_of[k]
                bases[row] = refine(gradient, old[row] if row in old else first_basis(gradient))

        with full_precision(self.losses.device):
            self._collect(done, None, False, None)
        return bases

    def _collect(
        self,
        done: Callable[[int, PerExampleGrad], None],
        inputs: Tensor | None,
        keep: bool,
        sketches: "Sketches | None",
    ) -> Tensor | None:
        """Calls done(weight, gradient) as soon as a weight's last use has been visited."""
        collector = _Collector(self, done, keep and not self.frozen, sketches)
        children = self.graph.children
        called = {children[use.index][slot] for use in self.usage.uses if use.rule is None for slot in use.slots}
        input_gradient = visit_gradients(
            self.graph,
            self.losses,
            torch.ones_like(self.losses),
            {*collector.uses, *collector.norms},
            collector.visit,
            frozen=self.frozen,
            inputs=inputs,
            also=[child for child in called if child is not None],
            retain_graph=not collector.frees,
        )
        collector.finish()
        return input_gradient

    def rule_gradients(
        self, use: WeightUse, grads: tuple[Tensor | None, ...], some: Container[int] | None = None
    ) -> dict[int, PerExampleGrad]:
        """The gradients of some weights that a node uses, or of all, from those of its outputs, by slot."""
        node, weights, n = self.graph.nodes[use.index], self.usage.weights, len(self.losses)
        shapes = {slot: weights[k].shape for slot, k in use.slots.items() if some is None or k in some}
        with error_context(node, self.names, [weights[k] for k in use.slots.values()]):
            if use.rule is None:
                owners = [torch.zeros(1, dtype=torch.long) if o is None else o for o in use.owners]
                return {slot: NodeCallGrad(node, slot, shape, grads, owners, n) for slot, shape in shapes.items()}
            g = grads[0]
            if g is None or use.rows is None:
                return {}
            return use.rule.gradients(node, shapes, g if use.rule.accepts_half else to_float32(g), use.rows)

    def rows_of_norms(self, fed: dict[int, list[FrozenNorm]]) -> dict[int, RowLayout]:
        """The layouts of batch norms' outputs: their own, or that of a layer that feeds them, or batch first."""
        uses = {use.index: use.rows for use in self.usage.uses if use.rows is not None}
        rows = {norm.index: uses[layer] for layer, norms in fed.items() if layer in uses for norm in norms}
        n = len(self.losses)
        for index in (norm.index for norm in self.frozen if norm.index not in rows):
            images = self.graph.shape(index)[0]
            if index in uses or images % n == 0:
                rows[index] = uses.get(index, RowLayout(n, images // n))
        return rows

    def _pulled_squares(self, group: TiedParams, gradients: dict[int, PerExampleGrad]) -> Tensor:
        """Squared norms where weights are no parameters, or hooks change gradients: every example's is pulled back."""
        leaves = [self.params[k] for k in group.leaves]
        present = [k for k in group.weights if k in gradients]
        edges = [self.edge(k) for k in present]
        step = CHUNK if self.losses.is_cuda else 1
        totals = []
        for i in range(0, len(self.losses), step):
            rows = [gradients[k].dense(slice(i, i + step)) for k in present]
            if step == 1:
                pulled = torch.autograd.grad(
                    edges, leaves, [row[0] for row in rows], retain_graph=True, allow_unused=True
                )
                pulled = [None if p is None else p[None] for p in pulled]
            else:
                pulled = torch.autograd.grad(
                    edges, leaves, rows, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            squares = [row_squares(to_float32(p)).double() for p in pulled if p is not None]
            totals.append(torch.stack(squares).sum(0))
        return torch.cat(totals)


def _put_rows(total: Tensor, rows: Sequence[int], values: Tensor) -> None:
    """Writes values (rows, n) to these rows: a few operations for all, where each row would take three."""
    total.index_copy_(0, on_device(tuple(rows), total.device), values.to(total))


@dataclass
class Sketches:
    """bases: of groups of parameters, see `PerExampleBackward.refine`.

    layers, sums, rows: what a pass finds: by group of parameters, and by place of a norm what an example adds to its
    derivatives, and the layout of its images. features: takes the layers' inputs along their bases, where not None.
    """

    bases: Bases
    layers: dict[int, LayerSketch] = field(default_factory=dict)
    sums: dict[int, Sums] = field(default_factory=dict)
    rows: dict[int, RowLayout] = field(default_factory=dict)
    features: dict[int, Tensor] | None = None


class _Collector:
    """Gathers the gradients of weights on their way through one backward pass.

    frees: whether the pass frees the graph as it goes, so that gradients take what they need of it at once.
    """

    def __init__(
        self,
        backward: PerExampleBackward,
        done: Callable[[int, PerExampleGrad], None],
        frees: bool,
        sketches: Sketches | None,
    ):
        self.backward, self.done, self.frees, self.sketches = backward, done, frees, sketches
        usage, graph, frozen = backward.usage, backward.graph, backward.frozen
        self.uses = {use.index: use for use in usage.uses}
        self.fed = {} if sketches is None else upstream_layers(graph, frozen)
        self.rows = {} if sketches is None else backward.rows_of_norms(self.fed)
        self.norms = {norm.index: norm for norm in frozen if norm.index in self.rows}
        self.group_of = {} if sketches is None else backward.sketched()
        if sketches is not None:
            sketches.rows |= self.rows
        self._missing = Counter(k for use in usage.uses for k in use.slots.values())
        self._arrived: dict[int, list[PerExampleGrad]] = {}

    def visit(self, index: int, grads: tuple[Tensor | None, ...]) -> None:
        use = self.uses.get(index)
        gradients = {} if use is None else self.backward.rule_gradients(use, grads)
        if self.sketches is not None and index in self.norms and grads[0] is not None:
            self.sketches.sums[index] = self._sums(index, grads[0], gradients)
        if use is None:
            return
        for slot, gradient in gradients.items():
            k = use.slots[slot]
            if self.sketches is not None:
                gradient = self._sketched(self.sketches, index, k, gradient)
            if self.frees:
                gradient.materialize()
            self._arrived.setdefault(k, []).append(gradient)
            self._missing[k] -= 1
            if not self._missing[k]:
                self.done(k, merge(self._arrived.pop(k)))

    def finish(self) -> None:
        """Some uses have undefined gradients, which count as zero."""
        for k, gradients in self._arrived.items():
            self.done(k, merge(gradients))
        self._arrived.clear()

    def _sums(self, index: int, g: Tensor, affine: dict[int, PerExampleGrad]) -> Sums:
        """S1 and S2 of a norm's examples: from the gradients of its own weights where it has both, else from g."""
        norm, rows = self.norms[index], self.rows[index]
        weight, bias = affine.get(1), affine.get(2)
        if isinstance(weight, DenseGrad) and isinstance(bias, DenseGrad):
            scale = norm.scale()
            return bias.values * scale, weight.values * scale
        first, second = norm.sums(to_float32(g))
        return rows.sums(first), rows.sums(second)

    def _sketched(self, sketches: Sketches, index: int, k: int, gradient: PerExampleGrad) -> PerExampleGrad:
        """Adds the sketch of a layer's gradient; returns the gradient, that of a bias before norms corrected."""
        norms = [norm for norm in self.fed.get(index, ()) if norm.index in sketches.sums]
        if isinstance(gradient, DenseGrad):
            return correct_bias(gradient, [sketches.sums[norm.index] for norm in norms])
        row = self.group_of.get(k)
        if row is not None and row in sketches.bases and is_layer(gradient):
            features = gradient.features(sketches.bases[row])
            sketches.layers[row] = sketch(gradient, features, norms, self.rows, sketches.sums, sketches.bases[row])
            if sketches.features is not None:
                sketches.features[row] = features
        return gradient
