"""The optimisers by name."""

from typing import TypeVar

from pyengm.errors import ConfigError
from pyengm.optim.base import PerExampleSGD

OPTIMIZERS: dict[str, type[PerExampleSGD]] = {}
"""Optimisers with one `backward` and one `step` for every mini-batch, by the names in their records."""

CLOSURE_OPTIMIZERS: dict[str, type[PerExampleSGD]] = {}
"""Optimisers whose `step(closure)` draws the mini-batches, by the names in their records."""

AnyOptimizer = TypeVar("AnyOptimizer", bound=type[PerExampleSGD])


def register_optimizer(kind: AnyOptimizer) -> AnyOptimizer:
    """Adds an optimiser to `OPTIMIZERS` or `CLOSURE_OPTIMIZERS`, under the name in its record; a class decorator.

    Modules of `pyengm.optim` are found by themselves. An optimiser of one's own, anywhere else, is known once its
    module has been imported.

    Args:
        kind: A subclass of `PerExampleSGD` with an `info` of its own.

    Returns:
        The class.

    Raises:
        ConfigError: The class has no record of its own with a name, or another class has that name.
    """
    if "info" not in vars(kind) or not kind.info.name:
        raise ConfigError(f"{kind.__name__} has no name; expected a class attribute info = OptimizerInfo(name=...)")
    known = (OPTIMIZERS | CLOSURE_OPTIMIZERS).get(kind.info.name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(
            f"the name {kind.info.name!r} of {kind.__name__} is taken by {known.__name__}; give it another one"
        )
    (CLOSURE_OPTIMIZERS if kind.info.takes_closure else OPTIMIZERS)[kind.info.name] = kind
    return kind
