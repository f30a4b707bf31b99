"""Per-example gradients."""

from pyengm.pergrad.check import check_losses
from pyengm.pergrad.oracle import exact_norms

__all__ = ["check_losses", "exact_norms", "per_example_grad_norms"]

per_example_grad_norms = exact_norms
