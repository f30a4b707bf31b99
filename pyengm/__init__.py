"""pyengm: fast adversarial training with example-normalised gradient descent (ENGM)."""

from importlib.metadata import PackageNotFoundError, version

import torch  # noqa: F401  (first: the native module shares torch's OpenMP runtime)

from pyengm import analysis, attacks, data, evaluation, methods, models, ops, optim, pergrad
from pyengm.errors import PyengmError, UnsupportedOperationError
from pyengm.optim import AENGM, ENGM, FENGM, MGNC, MSGD, NENGM, SNGM, EntropySGD, EntropySGD2, scale_alpha
from pyengm.pergrad import clipped_backward, per_example_grad_norms, weighted_backward
from pyengm.training.steps.train_step import train_step

try:
    __version__ = version("pyengm")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AENGM",
    "ENGM",
    "FENGM",
    "MGNC",
    "MSGD",
    "NENGM",
    "SNGM",
    "EntropySGD",
    "EntropySGD2",
    "PyengmError",
    "UnsupportedOperationError",
    "analysis",
    "attacks",
    "clipped_backward",
    "data",
    "evaluation",
    "methods",
    "models",
    "ops",
    "optim",
    "per_example_grad_norms",
    "pergrad",
    "scale_alpha",
    "train_step",
    "weighted_backward",
]
