"""pyengm: fast adversarial training with example-normalised gradient descent (ENGM).

`import pyengm` imports nothing else: its parts, and torch with them, are imported when they are first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pyengm.errors import PyengmError, UnsupportedOperationError

if TYPE_CHECKING:  # what `_HOMES` imports
    from pyengm import (
        analysis,
        attacks,
        comparison,
        data,
        evaluation,
        kernels,
        methods,
        models,
        ops,
        optim,
        pergrad,
        report,
        training,
    )
    from pyengm.optim import (
        AENGM,
        ENGM,
        FENGM,
        MGNC,
        MSGD,
        NENGM,
        SNGM,
        EntropySGD,
        EntropySGD2,
        Muon,
        PSClipSGD,
        scale_alpha,
    )
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
    "Muon",
    "PSClipSGD",
    "PyengmError",
    "UnsupportedOperationError",
    "analysis",
    "attacks",
    "clipped_backward",
    "comparison",
    "data",
    "evaluation",
    "kernels",
    "methods",
    "models",
    "ops",
    "optim",
    "per_example_grad_norms",
    "pergrad",
    "report",
    "scale_alpha",
    "train_step",
    "training",
    "weighted_backward",
]

_PARTS = (
    *("analysis", "attacks", "comparison", "data", "evaluation", "kernels", "methods", "models", "ops", "optim"),
    *("pergrad", "report", "training"),
)
_HOMES = {"train_step": "training.steps.train_step"}
_HOMES |= dict.fromkeys(("clipped_backward", "per_example_grad_norms", "weighted_backward"), "pergrad")
_HOMES |= dict.fromkeys(("AENGM", "ENGM", "FENGM", "MGNC", "MSGD", "Muon", "NENGM", "SNGM", "scale_alpha"), "optim")
_HOMES |= dict.fromkeys(("EntropySGD", "EntropySGD2", "PSClipSGD"), "optim")


def __getattr__(name: str) -> Any:
    """Imports the part of this name, or the part that holds it (PEP 562)."""
    if name in _PARTS:
        return import_module(f"pyengm.{name}")
    if name in _HOMES:
        return getattr(import_module(f"pyengm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pyengm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
