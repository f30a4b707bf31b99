"""Registration of weight rules: the per-example gradient of a weight in an input slot of a node.

A weight rule takes a node, the slots that hold weights with the weights' shapes, the gradient g of the node's output
and the layout of its rows. The saved fields of torch's nodes that rules read are registered with them. Shapes: n
examples, R rows, T rows of an example, D features.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengm.pergrad.layout import Shape
from pyengm.pergrad.per_example_grad import PerExampleGrad
from pyengm.pergrad.row_layout import RowLayout
from pyengm.pergrad.rules.registry import full_name

Node = Any  # torch makes its node types at run time, and they share no public base with these attributes
Slots = Mapping[int, torch.Size]  # input slot -> shape of the weight in it
RowAxes = tuple[Shape, tuple[int, ...]]  # a shape that g is viewed as, and its axes that make up the rows
GradRule = Callable[[Node, Slots, Tensor, RowLayout], dict[int, PerExampleGrad]]


def first_axis(node: Node, slots: Slots, shape: Shape) -> RowAxes:
    """Rows along the first axis of g."""
    return (shape, (0,)) if shape else ((1,), (0,))


@dataclass
class WeightRule:
    """slots: those that it supports. rows: which axes of g are rows. accepts_half: whether g may have 16 bits."""

    slots: tuple[int, ...]
    gradients: GradRule
    rows: Callable[[Node, Slots, Shape], RowAxes]
    accepts_half: bool


WEIGHT_RULES: dict[str, WeightRule] = {}
SAVED: dict[str, tuple[str, ...]] = {}  # node name -> the fields that its rule reads, without `_saved_`; torch's names


def weight_rule(
    names: str,
    *,
    slots: tuple[int, ...],
    fields: str = "",
    rows: Callable[[Node, Slots, Shape], RowAxes] = first_axis,
    accepts_half: bool = False,
) -> Callable[[GradRule], GradRule]:
    """Registers the gradients of weights in these slots of node types (names separated by spaces)."""

    def register(rule: GradRule) -> GradRule:
        for name in map(full_name, names.split()):
            WEIGHT_RULES[name] = WeightRule(slots, rule, rows, accepts_half)
            if fields:
                SAVED[name] = tuple(fields.split())
        return rule

    return register


def weight_rule_of(node: Node, slots: Iterable[int]) -> WeightRule | None:
    """The rule for weights in these slots of a node, or None."""
    rule = WEIGHT_RULES.get(node.name())
    return rule if rule is not None and set(slots) <= set(rule.slots) else None


def saved(node: Node, name: str) -> Any:
    """A field that a node saved in the forward pass."""
    return getattr(node, f"_saved_{name}")


def to_float32(t: Tensor) -> Tensor:
    """16-bit values in float32, in which sums and products are taken; others as they are."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
