"""Layout rules of Fourier transforms and of complex numbers as pairs of real ones."""

from pyengm.pergrad.layout import Layout, Shape, carry
from pyengm.pergrad.rules.registry import NodeView, axis_of, layout_rule, single


@layout_rule("FftC2C FftC2R FftR2C", "dim")
@single
def transform(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """The transformed axes mix."""
    mixed = {axis_of(dim, len(target)) for dim in node.fields["dim"]}
    return carry(layout, source, target, {a: a for a in range(len(target)) if a not in mixed})


@layout_rule("ViewAsComplex ViewAsReal")
@single
def pairs(node: NodeView, layout: Layout, source: Shape, target: Shape) -> Layout:
    """One of the two shapes has a last axis of two more, the real and the imaginary part."""
    return carry(layout, source, target, {a: a for a in range(min(len(source), len(target)))})
