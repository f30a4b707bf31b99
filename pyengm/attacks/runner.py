"""How the forward and backward passes of an attack are run: eagerly, compiled or captured."""

from collections.abc import Callable, Hashable
from typing import Protocol

from torch import Tensor, nn


class Runner(Protocol):
    """Runs the passes of an attack. `EagerRunner` runs them as they are; a trainer has faster ones."""

    def module_for(self, model: nn.Module) -> nn.Module:
        """The module that the attack calls in place of the model, such as the same model compiled.

        Args:
            model: The model that the attack was given. Its state (see `attack_mode`) is set on what is returned.

        Returns:
            A module with the outputs and the parameters of the model.
        """
        ...

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], settings: Hashable, x_adv: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns function(x_adv, *others), which changes x_adv in place.

        Args:
            function: All steps of an attack. It draws no random numbers and does not make the host wait for a GPU.
            settings: Everything that the function depends on, except the contents of the tensors and of the parameters.
            x_adv: (n, ...) the iterates.
            others: Tensors of n rows each, which stay as they are.
        """
        ...


class EagerRunner:
    """Runs every pass as it is."""

    def module_for(self, model: nn.Module) -> nn.Module:
        """Returns the model itself."""
        return model

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], settings: Hashable, x_adv: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Calls the function; arguments as for `Runner`."""
        return function(x_adv, *others)
