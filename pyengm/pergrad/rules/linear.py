"""Matrix products: layout rules, and the gradients of weights in them.

Shapes: R rows, I inputs, O outputs, B products at once.
"""

from collections.abc import Mapping

from torch import Tensor

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.layout import Layout, Shape, UnprovenError, carry
from pyengm.pergrad.per_example_grad import DenseGrad, OuterProductGrad, PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.elementwise import elementwise
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule, single
from pyengm.pergrad.rules.weights import Node, RowAxes, Slots, saved, to_float32, weight_rule


def _product(layout: Layout, source: Shape, left: Shape | None, right: Shape | None) -> Layouts:
    """(..., R, I) times (..., I, O), or a vector in place of the right one; the contracted axis meets every index."""
    vector = (right is not None and len(right) == 1) or (left is not None and len(left) == len(source) + 1)
    rows, columns = (len(source) - 1, None) if vector else (len(source) - 2, len(source) - 1)
    batch = {axis: axis for axis in range(rows)}
    of_right = batch if columns is None else batch | {columns: columns}
    return [
        None if left is None else carry(layout, source, left, batch | {rows: rows}),
        None if right is None else carry(layout, source, right, of_right),
    ]


@layout_rule("Bmm Mm Mv")
def matmul_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    return _product(layouts[0], node.outputs[0], *node.inputs)


@layout_rule("Addmm Addmv Baddbmm")
def addmm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    bias = elementwise(NodeView(node.name, node.outputs, node.inputs[:1], {}, ""), layouts)
    return [*bias, *_product(layouts[0], node.outputs[0], *node.inputs[1:])]


@layout_rule("Addr")
def addr_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A matrix plus the outer product of two vectors."""
    bias = elementwise(NodeView(node.name, node.outputs, node.inputs[:1], {}, ""), layouts)
    vectors = enumerate(node.inputs[1:3])
    return [*bias, *(None if to is None else carry(layouts[0], node.outputs[0], to, {a: 0}) for a, to in vectors)]


@layout_rule("Addbmm")
def addbmm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """A matrix plus a sum of products (B, R, I) times (B, I, O)."""
    bias = elementwise(NodeView(node.name, node.outputs, node.inputs[:1], {}, ""), layouts)
    factors = zip(node.inputs[1:3], ({0: 1}, {1: 2}), strict=True)
    return [*bias, *(None if to is None else carry(layouts[0], node.outputs[0], to, axes) for to, axes in factors)]


@layout_rule("GroupedMm")
def grouped_mm_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """(R, I) or (B, R, I) times (I, O) or (B, I, O); where one has no B, its rows or columns fall into B groups."""
    layout, source = layouts[0], node.outputs[0]
    left, right = node.inputs[:2]
    found: Layouts = [None if left is None else carry(layout, source, left, {len(source) - 2: len(left) - 2})]
    found.append(None if right is None else carry(layout, source, right, {len(source) - 1: len(right) - 1}))
    return [*found, *[None] * (len(node.inputs) - 2)]


@layout_rule("Cdist")
def cdist_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """Distances (..., P, R) of points (..., P, D) and (..., R, D)."""
    layout, source = layouts[0], node.outputs[0]
    last = len(source) - 1
    if any(to is not None and len(to) != len(source) for to in node.inputs):
        raise UnprovenError("points with batch axes of different lengths")
    axes = [{a: a for a in range(last)}, {a: a for a in range(last - 1)} | {last: last - 1}]
    return [None if to is None else carry(layout, source, to, of) for to, of in zip(node.inputs, axes, strict=True)]


@layout_rule("Cholesky LinalgCholeskyEx LinalgInvEx LinalgMatrixExp")
@single
def matrix_function(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """Matrices in the last two axes."""
    return carry(layout, source, target, {axis: axis for axis in range(len(target) - 2)})


@layout_rule("Dot Vdot")
def dot_layout(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    return [None if to is None else layouts[0] for to in node.inputs]


@weight_rule("Addmm", slots=(0, 2), fields="alpha beta mat1")
def addmm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """beta bias + alpha a W with a (R, I), W (I, O)."""
    found: dict[int, PerExampleGrad] = {}
    alpha, beta = saved(node, "alpha"), saved(node, "beta")
    g = rows.split(g)
    if 0 in slots:
        if slots[0].numel() != g.shape[2]:
            raise UnsupportedOperationError(f"addmm with a bias of shape {tuple(slots[0])} has no rule")
        found[0] = DenseGrad(g.sum(1) * beta, slots[0])
    if 2 in slots:
        a = rows.split(to_float32(saved(node, "mat1")))
        found[2] = OuterProductGrad(a[:, None] if alpha == 1 else a[:, None] * alpha, g[:, None], slots[2])
    return found


def _mm_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    return shape, (0,) if 1 in slots else (1,)


@weight_rule("Mm", slots=(0, 1), fields="mat2 self", rows=_mm_rows)
def mm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """a W with a (R, I), W (I, O); or W b with W (O, I), b (I, R)."""
    if 1 in slots:
        a = rows.split(to_float32(saved(node, "self")))
        return {1: OuterProductGrad(a[:, None], rows.split(g)[:, None], slots[1])}
    b = rows.split(to_float32(saved(node, "mat2")).mT)
    return {0: OuterProductGrad(rows.split(g.mT)[:, None], b[:, None], slots[0])}


@weight_rule("Mv", slots=(1,), fields="self")
def mv(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """a w with a (R, I), w (I,)."""
    a = rows.split(to_float32(saved(node, "self")))
    return {1: OuterProductGrad(a[:, None], rows.split(g)[:, None, :, None], slots[1])}


def _bmm_rows(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    return shape, (1,) if 1 in slots else (2,)


@weight_rule("Bmm", slots=(0, 1), fields="mat2 self", rows=_bmm_rows)
def bmm(node: Node, slots: Slots, g: Tensor, rows: RowLayout) -> dict[int, PerExampleGrad]:
    """B products at once, a W with a (B, R, I), W (B, I, O); or W b with W (B, O, I), b (B, I, R)."""

    def split(t: Tensor) -> Tensor:  # (B, R, D) -> (n, B, T, D)
        return rows.split(t.transpose(0, 1)).transpose(1, 2)

    if 1 in slots:
        return {1: OuterProductGrad(split(to_float32(saved(node, "self"))), split(g), slots[1])}
    return {0: OuterProductGrad(split(g.mT), split(to_float32(saved(node, "mat2")).mT), slots[0])}
