"""pyengm: fast adversarial training with example-normalised gradient descent (ENGM)."""

from importlib.metadata import PackageNotFoundError, version

import torch  # noqa: F401  (first: the native module shares torch's OpenMP runtime)

from pyengm import attacks, data, evaluation, methods, models, ops, optim, pergrad
from pyengm.errors import PyengmError
from pyengm.optim import ENGM, MSGD
from pyengm.pergrad import per_example_grad_norms

try:
    __version__ = version("pyengm")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ENGM",
    "MSGD",
    "PyengmError",
    "attacks",
    "data",
    "evaluation",
    "methods",
    "models",
    "ops",
    "optim",
    "per_example_grad_norms",
    "pergrad",
]
