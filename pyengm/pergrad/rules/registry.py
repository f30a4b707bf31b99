"""Registration of the rules: what is known of each type of node in the autograd graph.

A layout rule derives the layouts of a node's input gradients from those of its output gradients. It reads names,
shapes and the fields that it registers, and nothing else: these are the key under which a proof is remembered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyengm.pergrad.layout import Layout, Shape

Contents = tuple[str, int | None]  # a field that is a tensor, or a position in a field that is a tuple of them
Layouts = list[Layout | None]  # by input slot; None where no gradient flows


@dataclass(slots=True)
class NodeView:
    """What a layout rule sees of a node.

    outputs: shapes of the node's outputs; inputs: of its inputs, None for constants, through which no gradient flows.
    fields: values of the registered fields, tensors among them. read_contents: where the rule has read the values of
    tensors, by field and position in it, so that its result holds for these values alone.
    """

    name: str
    outputs: tuple[Shape, ...]
    inputs: tuple[Shape | None, ...]
    fields: Mapping[str, Any]
    child: str
    read_contents: list[Contents] = field(default_factory=list)

    def contents(self, name: str, position: int | None = None) -> Tensor:
        """A field that is a tensor, or the one at a position of a tuple of tensors; the caller reads its values."""
        self.read_contents.append((name, position))
        return contents_of(self.fields, (name, position))


def contents_of(fields: Mapping[str, Any], where: Contents) -> Tensor:
    """The tensor at an index that a rule has read."""
    name, position = where
    return fields[name] if position is None else fields[name][position]


LayoutRule = Callable[[NodeView, Mapping[int, Layout]], Sequence[Layout | None]]

LAYOUT_RULES: dict[str, LayoutRule] = {}
LAYOUT_FIELDS: dict[str, tuple[str, ...]] = {}


def full_name(name: str) -> str:
    """The name of a node type: "Relu" stands for "ReluBackward0"."""
    return name if "Backward" in name or "::" in name else f"{name}Backward0"


def layout_rule(names: str, fields: str = "") -> Callable[[LayoutRule], LayoutRule]:
    """Registers a layout rule for node types (names separated by spaces) and the saved fields that it reads."""

    def register(rule: LayoutRule) -> LayoutRule:
        for name in map(full_name, names.split()):
            if name in LAYOUT_RULES:
                raise ValueError(f"two layout rules for {name}")
            LAYOUT_RULES[name], LAYOUT_FIELDS[name] = rule, tuple(fields.split())
        return rule

    return register


def single(rule: Callable[[NodeView, Layout, Shape, Shape], Layout]) -> LayoutRule:
    """A rule(node, layout, output shape, input shape) for nodes whose first output and first input matter alone."""

    def whole(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
        (output, layout), *_ = layouts.items()
        shape = node.inputs[0]
        first = None if shape is None else rule(node, layout, node.outputs[output], shape)
        return [first, *[None] * (len(node.inputs) - 1)]

    return whole


def axis_of(dim: int, axes: int) -> int:
    """An axis from 0 to axes - 1 for a dim that may be negative; tensors without axes count as having one."""
    return dim % max(axes, 1)


def plain(value: Any) -> Any:
    """A saved field as hashable values, tensors as they are; torch keeps negative integers unsigned."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(plain(one) for one in value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**63:
        return value - 2**64
    return value
