"""Per-example gradients: their norms, and the gradient of reweighted losses, from one backward pass."""

from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad.backward import PerExampleStats, backward_by_weights, clipped_backward, weighted_backward
from pyengm.pergrad.exact import exact_norms
from pyengm.pergrad.fsdp import any_sharded, gathered, whole_params
from pyengm.pergrad.norm_estimator import NORMS, NormEstimator, per_example_grad_norms
from pyengm.pergrad.validation import check_losses

__all__ = [
    "NORMS",
    "NormEstimator",
    "PerExampleStats",
    "UnsupportedOperationError",
    "any_sharded",
    "backward_by_weights",
    "check_losses",
    "clipped_backward",
    "exact_norms",
    "gathered",
    "per_example_grad_norms",
    "weighted_backward",
    "whole_params",
]
