"""CUDA tensors without a GPU: they say that they are on a CUDA device, and their values are in the host's memory.

Every operation runs on the CPU, with real values and with the choices that code makes for CUDA tensors. What would make
the host wait for a GPU is seen: reads of values, shapes that depend on values, copies between host and device. So are
the operations that would launch kernels.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

from pyengm.kernels import conv_dispatch

DEVICE = torch.device("cuda", 99)  # which no machine has: nothing is mixed up with what code keeps for a real one
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd"}
SHAPED_BY_VALUES = {"nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique", "_unique2", "bincount"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_", "copy"}
NO_KERNELS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


class PretendedTensor(Tensor):
    """A tensor on `DEVICE` for Python code, with the values of `host`.

    To C++ it is on the meta device: autograd asks nothing of that, but of CUDA a driver.
    """

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "PretendedTensor":
        options = {
            "strides": host.stride(),
            "storage_offset": host.storage_offset(),
            "dtype": host.dtype,
            "device": torch.device("meta"),
        }
        made = Tensor._make_wrapper_subclass(cls, host.size(), **options)
        made.host = host
        return made

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_on_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_on_device(index), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **({"dtype": self.dtype, "device": DEVICE} | options))

    def tolist(self) -> Any:
        return self.cpu().tolist()  # as torch does for tensors of its own

    def __repr__(self) -> str:
        return f"PretendedTensor({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a pretended CUDA tensor outside of PretendedCuda")


def _on_device(index: Any) -> Any:
    """The index with its lists and tensors on `DEVICE`, where torch would copy them for tensors of its own."""
    if isinstance(index, tuple):
        return tuple(map(_on_device, index))
    if isinstance(index, list):
        index = torch.tensor(index)
    return index.to(DEVICE) if isinstance(index, Tensor) and not isinstance(index, PretendedTensor) else index


class PretendedGenerator(torch._C.Generator):
    """A generator on `DEVICE` for Python code."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls) if torch.device(device).type == "cuda" else torch._C.Generator(device)

    @property
    def device(self) -> torch.device:
        return DEVICE


class PretendedCuda(TorchDispatchMode):
    """Runs the operations on pretended tensors, and those that make tensors on `DEVICE`.

    A model goes there by `.to(DEVICE)`; "cuda" alone would ask the driver for a number. Triton's kernels are replaced
    by those of the CPU, so operands have 32 bits.

    Attributes:
        waits: The operations so far that made the host wait, with the reason.
        operations: How often each operation ran so far that launches a kernel, or several.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # at which torch starts no driver
        self.waits: list[str] = []
        self.operations: Counter[str] = Counter()

    def __enter__(self) -> "PretendedCuda":
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(_changed_settings())
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """The operations within that make the host wait, each with the reason."""
        self.waits = []
        yield self.waits

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and being skipped takes longer than most operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, ours, others = func.overloadpacket.__name__, {}, []

        def host(value: Any) -> Any:
            """The value with the tensors' hosts in place of the tensors, which are noted."""
            if isinstance(value, PretendedTensor):
                ours[id(value.host)] = value
                return value.host
            if isinstance(value, Tensor):
                assert not value.is_meta, f"{func}: a tensor lost its values"
                others.append(value)
            return [host(item) for item in value] if isinstance(value, list | tuple) else value

        host_args, host_kwargs = host(args), {key: host(value) for key, value in kwargs.items()}
        device = kwargs.get("device")
        on_cuda = bool(ours) if device is None else torch.device(device).type in ("cuda", "meta")
        if on_cuda and not func.is_view and name not in NO_KERNELS and not _is_the_same(name, args, kwargs):
            self.operations[name] += 1
        if ours or on_cuda:
            self._look(name, func, args, kwargs, bool(ours), others, on_cuda)
        if device is not None:
            host_kwargs["device"] = torch.device("cpu")
        out = func(*host_args, **host_kwargs)
        if not on_cuda or (name == "copy_" and not isinstance(args[0], PretendedTensor)):
            return args[0] if name == "copy_" else out
        return self._pretended(out, ours)

    def _pretended(self, value: Any, ours: dict[int, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return ours[id(value)] if id(value) in ours else PretendedTensor(value)
        return type(value)(self._pretended(item, ours) for item in value) if isinstance(value, list | tuple) else value

    def _look(
        self, name: str, func: Any, args: tuple, kwargs: dict, reads_device: bool, hosts: list[Tensor], on_cuda: bool
    ) -> None:
        """Notes whether the host waits, see https://docs.pytorch.org/docs/stable/notes/cuda.html."""
        reason = None
        if name in READS and reads_device:
            reason = "reads a value"
        elif _is_shaped_by_values(name, args, kwargs):
            reason = "its shape depends on values"
        elif name in COPIES and reads_device and (not on_cuda or not isinstance(args[0], PretendedTensor)):
            reason = "copies to the host"
        elif name in COPIES and hosts and not (kwargs.get("non_blocking") and hosts[0].is_pinned()):
            reason = "copies from memory of the host that is not pinned"
        elif any(t.dim() or name in INDEXED for t in hosts):
            reason = "has an operand on the host"
        if reason is not None:
            self.waits.append(f"{func}: {reason}")


def _is_shaped_by_values(name: str, args: tuple, kwargs: dict) -> bool:
    if name in INDEXED:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "segment_reduce":  # reads the lengths to check them
        return not kwargs.get("unsafe")
    return name in SHAPED_BY_VALUES


def _is_the_same(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether this is `t.to(DEVICE)` of a tensor that is there, which C++ cannot know."""
    dtype, memory_format = kwargs.get("dtype"), kwargs.get("memory_format")
    moves = name != "_to_copy" or not isinstance(args[0], PretendedTensor)
    return not moves and dtype in (None, args[0].dtype) and memory_format is None


@contextlib.contextmanager
def _changed_settings() -> Iterator[None]:
    """What else torch and pyengm decide by the device or the type of a tensor."""
    overwrite, lifts = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    supports, generator = conv_dispatch.supports, torch.Generator
    with_foreach = _foreach_utils._get_foreach_kernels_supported_devices
    _foreach_utils._get_foreach_kernels_supported_devices = lambda: [*with_foreach(), "meta"]
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a host tensor cannot become a pretended one
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes one on the host and then copies it
    grouped = (torch_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types)
    for types in grouped:
        types.append(PretendedTensor)
    torch.Generator = PretendedGenerator
    conv_dispatch.supports = lambda x, g, window: True  # its ops then run as on a GPU, down to their kernels
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_only_lift_cpu_tensors(lifts)
        for types in grouped:
            types.remove(PretendedTensor)
        conv_dispatch.supports, torch.Generator = supports, generator
        _foreach_utils._get_foreach_kernels_supported_devices = with_foreach
