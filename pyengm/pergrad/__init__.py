"""Per-example gradients."""

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.backward import ExampleWeights, clipped_backward, weighted_backward
from pyengm.pergrad.check import check_losses
from pyengm.pergrad.norms import NORMS, Estimator, per_example_grad_norms
from pyengm.pergrad.oracle import exact_norms

__all__ = [
    "NORMS",
    "Estimator",
    "ExampleWeights",
    "UnsupportedOperationError",
    "check_losses",
    "clipped_backward",
    "exact_norms",
    "per_example_grad_norms",
    "weighted_backward",
]
