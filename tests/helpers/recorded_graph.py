"""A CUDA graph on a CPU: the operators of one call, which are then run again on the same memory, without the call."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pyengm.ops._register import Op

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd")
SHAPED_BY_VALUES = ("nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique2", "bincount")

Results = tuple[Tensor, ...]


def makes_host_wait(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operator on tensors of the CPU would make the host wait if they were on a GPU."""
    name = func.overloadpacket.__name__
    by_mask = name in ("index", "index_put", "index_put_") and any(
        isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
    )
    from_list = name == "lift_fresh"  # a tensor of Python numbers, which a GPU gets by a copy from the host
    checked = name == "segment_reduce" and not kwargs.get("unsafe")
    return name in READS or name in SHAPED_BY_VALUES or by_mask or from_list or checked


class RecordedGraph:
    """In place of `CudaGraph`: as there, a capture changes nothing, and a replay runs nothing of the function's Python.

    An operator that would make the host wait for a GPU is an error in a capture. All bits of what a capture allocates
    are 1, which is nan, until a replay writes there.

    Attributes:
        warm_ups, captures, replays: How often each was called.
    """

    def __init__(self, device: torch.device) -> None:
        self.warm_ups = self.captures = self.replays = 0
        self._recorder = _Recorder()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        self.warm_ups += 1
        return function()

    def capture(self, function: Callable[[], Results]) -> Results:
        self.captures += 1
        random_numbers = torch.get_rng_state()
        try:
            with (
                mock.patch.object(Op, "__call__", _dispatched(Op.__call__)),
                mock.patch.object(F, "one_hot", _one_hot),
                self._recorder,
            ):
                return function()
        finally:
            torch.set_rng_state(random_numbers)
            self._recorder.undo()

    def replay(self) -> None:
        self.replays += 1
        self._recorder.replay()


class _Recorder(TorchDispatchMode):
    """Keeps the operators that run below autograd, pyengm's own among them, with their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple, dict[str, Any], list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}  # a tensor of all memory that the call allocated, by its address
        self._given: dict[int, tuple[Tensor, Tensor]] = {}  # of all memory that was there, with the contents

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if makes_host_wait(func, args, kwargs):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        for t in _tensors((args, kwargs)):
            if _address(t) not in self._made:
                self._given.setdefault(_address(t), (t, _memory(t).clone()))
        out = func(*args, **kwargs)
        results = list(_tensors(out))
        self._made |= {_address(t): t for t in results if _address(t) not in self._given}
        if torch.Tag.inplace_view not in func.tags:  # such as squeeze_, which changes no memory
            self._calls.append((func, *tree_map_only(Tensor, Tensor.detach, (args, kwargs, results))))
        return out

    def undo(self) -> None:
        """Leaves all memory as after a capture on a GPU, where nothing has run yet."""
        for t, contents in self._given.values():
            _memory(t).copy_(contents)
        for t in self._made.values():
            _memory(t).fill_(255)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self._calls:
            for kept, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():  # else a view, or what the operator writes to
                    kept.copy_(new)


def _dispatched(call: Callable) -> Callable:
    def checked(op: Op, *args: Any, backend: str | None = None) -> Any:
        assert backend is None, f"{op.name} was called past torch's dispatcher, where a recording does not see it"
        return call(op, *args)

    return checked


def _one_hot(y: Tensor, num_classes: int) -> Tensor:
    """torch's, which reads the labels on a CPU alone, to check them."""
    return y.new_zeros(*y.shape, num_classes).scatter(-1, y[..., None], 1)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (t for t in tree_leaves(values) if isinstance(t, Tensor) and t.numel())


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _memory(t: Tensor) -> Tensor:
    """All bytes of the memory that a tensor is in."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
