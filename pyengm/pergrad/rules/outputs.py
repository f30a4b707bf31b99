"""Layouts of the inputs of nodes with several outputs."""

from collections.abc import Callable, Mapping

from pyengm.pergrad.layout import NOBODY, Layout, Shape, UnprovenError, merge
from pyengm.pergrad.rules.registry import Layouts, NodeView

Below = Callable[[int, int, Layout, Shape, Shape], Layout]  # output, slot, layout and shape of the output, input shape


def merged(node: NodeView, layouts: Mapping[int, Layout], below: Below) -> Layouts:
    """The layouts of all inputs, each the merge of what every output alone gives it."""
    found: Layouts = [None if to is None else NOBODY for to in node.inputs]
    for output, layout in layouts.items():
        for slot, to in enumerate(node.inputs):
            before = found[slot]
            if to is None or before is None:
                continue
            both = merge(before, below(output, slot, layout, node.outputs[output], to))
            if both is None:
                raise UnprovenError("its outputs belong to different examples")
            found[slot] = both
    return found
