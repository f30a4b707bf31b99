"""The rules of the engine, by family: how layouts move through a node, and the gradients of weights in it."""

from pyengm.pergrad.rules import (  # noqa: F401
    attention,
    broadcast,
    conv,
    double_backward,
    elementwise,
    embedding,
    fourier,
    indexing,
    linear,
    loss,
    norm,
    recurrent,
    reduction,
    shape,
    spatial,
)
from pyengm.pergrad.rules.registry import LAYOUT_FIELDS, LAYOUT_RULES
from pyengm.pergrad.rules.weights import SAVED, WEIGHT_RULES

__all__ = ["LAYOUT_FIELDS", "LAYOUT_RULES", "SAVED", "WEIGHT_RULES"]
