"""Which gradients of an optimiser's parameters its own `backward` made, so that a step along others is an error."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.weak import TensorWeakRef


class GradOrigin:
    """Follows .grad of parameters from the optimiser's own backward passes to its step.

    A gradient is known by its tensor, so that changes in place (clipping, unscaling, averaging over processes) keep
    its origin. A hook on each parameter sees what other backward passes add to it.
    """

    def __init__(self) -> None:
        self._made: dict[Tensor, TensorWeakRef] = {}  # parameter to the gradient that it had after its last own pass
        self._mixed: set[Tensor] = set()  # parameters whose gradient has a share of another pass
        self._owners: dict[Tensor, Tensor] = {}  # tensor in the graph to the parameter that gets its gradient
        self._hooks: dict[Tensor, Any] = {}
        self._running = False
        weakref.finalize(self, _remove, self._hooks).atexit = False

    @contextlib.contextmanager
    def own_pass(self, leaves: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """The block is a backward pass of the optimiser's own.

        Args:
            leaves: The parameters that get gradients, by the tensors that the graph has for them: another one where a
                parameter is sharded.
        """
        fresh = []
        for leaf, p in leaves.items():
            self._watch(leaf, p)
            if p.grad is None or self._is_made(p) or not _any(p.grad):
                self._mixed.discard(p)
                fresh.append(p)
        self._running = True
        try:
            yield
        finally:
            self._running = False
            self.accept(fresh)

    def accept(self, params: Iterable[Tensor]) -> None:
        """Takes the present gradients of the parameters as made by own passes."""
        for p in params:
            self._mixed.discard(p)
            if p.grad is not None:
                self._made[p] = TensorWeakRef(p.grad)

    def foreign(self, params: Iterable[Tensor]) -> list[Tensor]:
        """The parameters with a gradient that own passes did not make, or not alone; gradients of 0 weigh nothing."""
        return [p for p in params if p.grad is not None and not self._is_made(p) and _any(p.grad)]

    def clear(self) -> None:
        """Called when all gradients were set to None or 0."""
        self._mixed.clear()

    def _is_made(self, p: Tensor) -> bool:
        return p in self._made and p not in self._mixed and self._made[p]() is p.grad

    def _watch(self, leaf: Tensor, p: Tensor) -> None:
        self._owners[leaf] = p
        if leaf in self._hooks:
            return
        origin = weakref.ref(self)

        def see(leaf: Tensor) -> None:
            if (self := origin()) is not None and not self._running:
                self._mixed.add(self._owners[leaf])

        self._hooks[leaf] = leaf.register_post_accumulate_grad_hook(see)


def _remove(hooks: dict[Tensor, Any]) -> None:
    for hook in hooks.values():
        hook.remove()


def _any(grad: Tensor) -> bool:
    return bool((grad.coalesce().values() if grad.is_sparse else grad).any())
