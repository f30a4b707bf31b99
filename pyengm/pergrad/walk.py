"""Per-example gradients from one backward pass over the autograd graph."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.check import check_losses
from pyengm.pergrad.corrected import Sums, correct
from pyengm.pergrad.frozen import FrozenNorm, feeders, frozen_norms
from pyengm.pergrad.gradients import Dense, Gradient, Together, join, row_squares
from pyengm.pergrad.graph import Graph, walk
from pyengm.pergrad.passes import arithmetic, visit_gradients
from pyengm.pergrad.plan import Group, Plan, StalePlanError, find_plan, forget, naming, recall, remember
from pyengm.pergrad.rows import Rows
from pyengm.pergrad.rules import called, rule_of, wide
from pyengm.pergrad.verify import verify

WAY_OUT = 'norms="exact" takes one backward pass per example instead'
CHUNK = 16  # examples of a batched pass on a GPU
OPAQUE = {  # nodes that hide a model's own graph
    "CompiledFunctionBackward": "run the model itself in the outer step and compile only the attack",
    "CheckpointFunctionBackward": "pass use_reentrant=False to torch.utils.checkpoint",
}


def start(losses: Tensor, params: Iterable[Tensor]) -> "Walk":
    """Finds the parameters in the graph of the losses (n,); nothing in it is changed.

    The first call for a structure of graph checks that no row of an output gradient belongs to two examples and, where
    batch statistics do not couple the examples, compares two norms with exact derivatives.
    Raises UnsupportedOperationError for what no rule serves, RuntimeError where the comparison fails, and what
    `exact_norms` raises.
    """
    check_losses(losses)
    params = [p for p in dict.fromkeys(params) if p.requires_grad]  # each once
    if not params:
        raise ValueError("none of the parameters requires grad")
    graph = walk(losses, params)
    frozen = frozen_norms(graph)
    plan = recall(graph, params)
    if isinstance(plan, str):
        raise UnsupportedOperationError(plan)
    if plan is not None:
        return Walk(losses, params, graph, plan, frozen)
    try:
        _check_served(graph, params)
        plan = find_plan(graph, losses, params, frozen)
        found = Walk(losses, params, graph, plan, frozen)
        squares, _ = found.squares()
    except (UnsupportedOperationError, CheckpointError) as error:
        reason = f"{error}; {WAY_OUT}"
        remember(graph, params, reason)
        raise UnsupportedOperationError(reason) from error
    if not frozen:
        verify(losses, params, graph, plan, squares, WAY_OUT)
    if not plan.broken:
        remember(graph, params, plan)
    return found


def _check_served(graph: Graph, params: list[Tensor]) -> None:
    for node in graph.nodes:
        if node.name() in OPAQUE:
            raise UnsupportedOperationError(f"{node.name()} hides the graph of the model: {OPAQUE[node.name()]}")
    if any(type(p).__name__ == "DTensor" for p in params):
        raise UnsupportedOperationError(
            "parameters sharded by FSDP2 (DTensor) are not in the graph; use DistributedDataParallel"
        )


@dataclass
class Walk:
    """Losses with their graph, and where it uses the parameters; made by `start`.

    frozen: batch norms whose statistics couple examples. plan: replaced where it proves wrong for these losses.
    """

    losses: Tensor
    params: list[Tensor]
    graph: Graph
    plan: Plan
    frozen: list[FrozenNorm]

    def squares(  # noqa: C901  the issue of the engine rewrites it
        self,
        *,
        inputs: Tensor | None = None,
        kept: dict[int, Gradient] | None = None,
        corrected: bool = False,
        sums: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """||dL_i / d group||^2 for the groups of parameters, (groups, n) float64, and the gradient of given inputs.

        Batch statistics count as constants. kept: takes the gradients of every weight, for `deliver`; the graph's
        activations are then freed on the way, unless they may be needed once more. corrected: statistics count
        between a layer and the batch norms that its output reaches through additions alone. sums: takes the
        derivatives of every batch norm's mean and deviation, (n, C) each.
        """
        total = torch.zeros(0)
        pending: dict[int, Gradient] = {}
        small: dict[int, Dense] = {}
        group_of: dict[int, int] = {}

        def done(k: int, gradient: Gradient) -> None:
            group = group_of[k]
            if self.plan.groups[group].plain and Together.takes(gradient):
                small[k] = gradient
            elif self.plan.groups[group].plain:
                total[group] += gradient.squares(keep=kept is not None).to(total)
            else:
                pending[k] = gradient
            if kept is not None:
                kept[k] = gradient

        def run() -> Tensor | None:
            nonlocal total  # and everything anew, should the plan have been replaced
            group_of.update((k, row) for row, group in enumerate(self.plan.groups) for k in group.weights)
            total = torch.zeros(len(self.plan.groups), len(self.losses), dtype=torch.float64, device=self.losses.device)
            for taken in (pending, small, kept, sums):
                if taken is not None:
                    taken.clear()
            return self._collect(done, inputs, kept is not None, corrected, sums)

        with arithmetic(self.losses.device):
            input_gradient = self._with_sound_plan(run)
            if small:
                for k, squares in zip(small, Together(small).squares().to(total), strict=True):
                    total[group_of[k]] += squares
            for row, group in enumerate(self.plan.groups):
                if not group.plain and any(k in pending for k in group.weights):
                    total[row] = self._pulled_squares(group, pending).to(total)
        return total, input_gradient

    def gradients(self, inputs: Tensor | None) -> tuple[dict[int, Gradient], Tensor | None]:
        """The gradients of every weight for `deliver`, without norms, and that of the inputs; activations are freed."""
        kept: dict[int, Gradient] = {}

        def run() -> Tensor | None:
            kept.clear()
            return self._collect(kept.__setitem__, inputs, True, False, None)

        with arithmetic(self.losses.device):
            input_gradient = self._with_sound_plan(run)
        return kept, input_gradient

    def deliver(self, kept: dict[int, Gradient], weights: Tensor) -> None:
        """Adds sum_i weights_i g_i to .grad of the parameters, through autograd, so that hooks and reducers run."""
        if kept:
            with arithmetic(self.losses.device):
                small = {k: gradient for k, gradient in kept.items() if Together.takes(gradient)}
                grads = Together(small).weighted(weights) if small else {}
                grads |= {k: gradient.weighted(weights) for k, gradient in kept.items() if k not in small}
            torch.autograd.backward([self.edge(k) for k in grads], list(grads.values()))

    def edge(self, k: int) -> GradientEdge:
        """Where the gradient of weight k flows."""
        weight = self.plan.weights[k]
        return GradientEdge(self.graph.nodes[weight.place], weight.output)

    def _with_sound_plan(self, run: Callable[[], Tensor | None]) -> Tensor | None:
        try:
            return run()
        except StalePlanError:
            forget(self.graph, self.params)
            self.plan = start(self.losses, self.params).plan
            return run()

    def _collect(  # noqa: C901  the issue of the engine rewrites it
        self,
        done: Callable[[int, Gradient], None],
        inputs: Tensor | None,
        keep: bool,
        corrected: bool,
        statistics: list[Tensor] | None,
    ) -> Tensor | None:
        """Calls done(weight, gradient) as soon as a weight's last use has been visited."""
        plan, graph = self.plan, self.graph
        free = keep and plan.certain and not self.frozen
        missing = Counter(k for use in plan.uses for k in use.slots.values())
        arrived: dict[int, list[Gradient]] = {}
        uses = {use.place: use for use in plan.uses}
        fed = feeders(graph, self.frozen) if corrected else {}
        rows = self._rows_of_norms(fed) if corrected else {}
        norms = {norm.place: norm for norm in self.frozen if norm.place in rows}
        sums: dict[int, Sums] = {}
        called_weights = {k for use in plan.uses if called(graph.nodes[use.place]) for k in use.slots.values()}

        def visit(place: int, g: Tensor) -> None:
            if place in plan.quiet:
                _check_silent(g)
                return
            if place in norms:
                first, second = (rows[place].split(s).sum(1) for s in norms[place].sums(wide(g)))
                sums[place] = first, second
                if statistics is not None:
                    deviation = norms[place].deviation()
                    statistics.extend(s * deviation for s in sums[place])
            if place not in uses:
                return
            use, node = uses[place], graph.nodes[place]
            shapes = {slot: plan.weights[k].shape for slot, k in use.slots.items()}
            rule = rule_of(node, shapes)
            assert rule is not None  # uses without a rule were an error
            if use.rows.silent is not None:
                _check_silent(rule.rows(node, shapes, g)[use.rows.silent])
            with naming(node, self.params, [plan.weights[k] for k in use.slots.values()]):
                found = rule.gradients(node, shapes, g if rule.narrow else wide(g), use.rows)
            for slot, gradient in correct(found, fed.get(place, ()), sums).items():
                k = use.slots[slot]
                if free:
                    gradient.settle()
                arrived.setdefault(k, []).append(gradient)
                missing[k] -= 1
                if not missing[k]:
                    done(k, join(arrived.pop(k)))

        input_gradient = visit_gradients(
            graph,
            self.losses,
            torch.ones_like(self.losses),
            {*uses, *plan.quiet, *norms},
            visit,
            frozen=self.frozen,
            inputs=inputs,
            also=[(plan.weights[k].place, plan.weights[k].output) for k in called_weights],
            retain_graph=not free,
        )
        for k, gradients in arrived.items():  # some of the uses have undefined gradients, which are zero
            done(k, join(gradients))
        return input_gradient

    def _rows_of_norms(self, fed: dict[int, list[FrozenNorm]]) -> dict[int, Rows]:
        """The layouts of batch norms' outputs: their own, or that of a layer that feeds them, or batch first."""
        uses = {use.place: use.rows for use in self.plan.uses}
        rows = {norm.place: uses[layer] for layer, norms in fed.items() if layer in uses for norm in norms}
        n = len(self.losses)
        for place in (norm.place for norm in self.frozen if norm.place not in rows):
            images = self.graph.shape(place)[0]
            if place in uses or images % n == 0:
                rows[place] = uses.get(place, Rows(n, images // n))
        return rows

    def _pulled_squares(self, group: Group, gradients: dict[int, Gradient]) -> Tensor:
        """Squared norms where parameters and weights differ: every example's gradient pulled back to the parameters."""
        leaves = [self.params[k] for k in group.leaves]
        present = [k for k in group.weights if k in gradients]
        edges = [self.edge(k) for k in present]
        options = {"retain_graph": True, "allow_unused": True}
        step = CHUNK if self.losses.is_cuda else 1
        totals = []
        for i in range(0, len(self.losses), step):
            rows = [gradients[k].dense(slice(i, i + step)) for k in present]
            if step == 1:
                pulled = torch.autograd.grad(edges, leaves, [row[0] for row in rows], **options)
                pulled = [None if p is None else p[None] for p in pulled]
            else:
                pulled = torch.autograd.grad(edges, leaves, rows, is_grads_batched=True, **options)
            totals.append(sum(row_squares(wide(p)).double() for p in pulled if p is not None))
        return torch.cat(totals)


def _check_silent(g: Tensor) -> None:
    if g.any():
        raise StalePlanError
