"""Runners of attacks that compile the model or capture the passes in a CUDA graph."""

from collections.abc import Callable, Hashable

from torch import Tensor, nn

from pyengm.attacks import EagerRunner, Runner
from pyengm.training.steps.captured_function import CapturedFunction, Results


class CudaGraphRunner(EagerRunner):
    """Captures the passes of an attack in a CUDA graph.

    Args:
        captured: Captures batches of one size.
    """

    def __init__(self, captured: CapturedFunction):
        self.captured = captured

    def __call__(self, function: Callable[..., Results], settings: Hashable, x_adv: Tensor, *others: Tensor) -> Results:
        """Replays the function where it is captured; see `CapturedFunction`."""
        return self.captured(function, settings, x_adv, *others)


class CompiledRunner:
    """Calls a compiled model in place of the model.

    Args:
        model: The model that the attack is given.
        compiled: The same model compiled.
        runner: Runs the passes.
    """

    def __init__(self, model: nn.Module, compiled: nn.Module, runner: Runner):
        self.model, self.compiled, self.runner = model, compiled, runner

    def module_for(self, model: nn.Module) -> nn.Module:
        """Returns the compiled model for its original, and what the inner runner calls for other models."""
        return self.compiled if model is self.model else self.runner.module_for(model)

    def __call__(self, function: Callable[..., Results], settings: Hashable, x_adv: Tensor, *others: Tensor) -> Results:
        """Runs the passes by the inner runner."""
        return self.runner(function, settings, x_adv, *others)
