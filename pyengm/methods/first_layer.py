"""The output of a model's first layer, which is the input of the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pyengm.errors import ConfigError


class _Reached(Exception):
    """Ends a forward pass at the first layer, with its output."""

    def __init__(self, output: Tensor):
        self.output = output


@contextmanager
def at_first_layer(model: nn.Module, name: str | None, use: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls use(output) once, when the first layer returns in a forward pass of the model within the context.

    Args:
        model: The model.
        name: The name of the first layer's module; None takes the first module with parameters of its own that returns,
            such as the convolution behind a normalisation of pixels.
        use: Receives the output of the first layer.

    Raises:
        ConfigError: The model has no such module, or did not call it.
    """
    reached: list[nn.Module] = []

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        if not reached:
            reached.append(module)
            use(output)

    hooks = [module.register_forward_hook(hook) for module in _candidates(model, name)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
    if not reached:
        raise ConfigError(f"the first layer, {name or 'any module with parameters'}, was not called by the model")


def first_output(model: nn.Module, name: str | None, x: Tensor) -> Tensor:
    """The first layer's output for x (n, ...), with its graph; later layers do not run. name: see `at_first_layer`."""

    def stop(output: Tensor) -> None:
        raise _Reached(output)

    with at_first_layer(model, name, stop):
        try:
            model(x)
        except _Reached as reached:
            return reached.output
    raise AssertionError("at_first_layer raises where the layer was not reached")


def _candidates(model: nn.Module, name: str | None) -> list[nn.Module]:
    if name is None:
        return [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    try:
        return [model.get_submodule(name)]
    except AttributeError as error:
        raise ConfigError(f"the model has no module {name!r} to be its first layer") from error
