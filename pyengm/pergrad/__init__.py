"""Per-example gradients."""

from pyengm.pergrad.check import check_losses
from pyengm.pergrad.graph import UnservedError
from pyengm.pergrad.norms import per_example_grad_norms
from pyengm.pergrad.oracle import exact_norms
from pyengm.pergrad.walk import walk_norms

__all__ = ["UnservedError", "check_losses", "exact_norms", "per_example_grad_norms", "walk_norms"]
