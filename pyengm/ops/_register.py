"""How a family of ops is registered: one schema, checks, a fake, a reference and the native kernels.

Every op is `torch.ops.pyengm.<name>`: it runs under torch.compile, and torch picks the kernel by the tensor's
device. Where no native kernel was built for a device, the plain-PyTorch reference runs there instead.
"""

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch

LIBRARY = torch.library.Library("pyengm", "DEF")
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}  # native kernels carry their type in the name
STORAGE_SUFFIX = SUFFIX | {torch.bfloat16: "bf16", torch.float16: "f16"}  # of ops that widen what they read
BACKENDS = ("reference", "cpu", "cuda")


def _native_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"pyengm.{name}")
    except ModuleNotFoundError:
        return None


CPU_MODULE = _native_module("_C")
CUDA_MODULE = _native_module("_cuda")


def _call_cpu(device: torch.device) -> Callable:
    return _run_cpu


def _run_cpu(kernel: str, *args, rows: tuple[int, int] | None = None) -> None:
    getattr(CPU_MODULE, kernel)(*args)


def _call_cuda(device: torch.device) -> Callable:
    stream = torch.cuda.current_stream(device).cuda_stream

    def call(kernel: str, *args, rows: tuple[int, int] | None = None) -> None:
        if rows is None:
            getattr(CUDA_MODULE, kernel)(device.index, stream, *args)
        else:  # several blocks may share a row, and meet in memory that torch owns: kernels allocate nothing
            workspace = torch.empty(CUDA_MODULE.rows_workspace(*rows), dtype=torch.uint8, device=device)
            getattr(CUDA_MODULE, kernel)(device.index, stream, *args, workspace.data_ptr())

    return call


class Op:
    """One op: callable as `op(*args, backend=None)`; the arguments are those of its schema.

    schema: torch's schema string without the name space.
    check: raises on bad arguments; runs before every kernel and in the fake, so it looks at metadata only.
    fake: returns outputs of the right shape and type.
    reference: the op in plain PyTorch.
    native: native(call, *args) allocates outputs and runs `call(kernel_name, *numbers)`, with rows=(n, d) for kernels
        that sum over rows.
    """

    def __init__(self, schema: str, *, check: Callable, fake: Callable, reference: Callable, native: Callable):
        self.name = schema.partition("(")[0]
        self._check, self._reference, self._native = check, reference, native
        self._kernels = {}
        if CPU_MODULE is not None:
            self._kernels["cpu"] = self._run(_call_cpu)
        if CUDA_MODULE is not None:
            self._kernels["cuda"] = self._run(_call_cuda)
        LIBRARY.define(schema)
        for device_type, kernel in self._kernels.items():
            LIBRARY.impl(self.name, kernel, device_type.upper())
        LIBRARY.impl(self.name, self._run_reference, "CompositeExplicitAutograd")

        def checked_fake(*args):
            check(*args)
            return fake(*args)

        torch.library.register_fake(f"pyengm::{self.name}", checked_fake, lib=LIBRARY)
        self._dispatched = getattr(torch.ops.pyengm, self.name).default

    def __call__(self, *args, backend: str | None = None):
        if backend is None:
            return self._dispatched(*args)
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; expected None or one of {', '.join(BACKENDS)}")
        if backend == "reference":
            self._check(*args)
            return self._reference(*args)
        if backend not in self._kernels:
            raise RuntimeError(f"the {backend} kernels of pyengm were not built; see PYENGM_CUDA in the README")
        device = args[0].device
        if device.type != backend:
            raise ValueError(f"{self.name}: backend={backend!r} needs {backend} tensors, got one on {device}")
        return self._kernels[backend](*args)

    def _run(self, caller: Callable) -> Callable:
        def run(*args):
            self._check(*args)
            return self._native(caller(args[0].device), *args)

        return run

    def _run_reference(self, *args):
        _warn_slow(args[0].device.type)
        self._check(*args)
        return self._reference(*args)


_warned: set[str] = set()


def _warn_slow(device_type: str) -> None:
    if device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(
            f"pyengm has no native kernels for {device_type!r} tensors in this installation; "
            "plain PyTorch runs in their place: right, but slower",
            stacklevel=3,
        )


def fail(op: str, expected: str, got: object) -> NoReturn:
    """Raises ValueError in the one form that all ops use."""
    raise ValueError(f"{op}: expected {expected}, got {got}")


def require_no_grad(op: str, *tensors: torch.Tensor | None) -> None:
    """An op without a derivative must not pretend to be a constant in a graph."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(f"{op} has no derivative: call it under torch.no_grad() or on detached tensors")
