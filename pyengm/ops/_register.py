"""Registration of an op: one schema, checks, a fake, a reference and the native kernels.

Every op is `torch.ops.pyengm.<name>`: it runs under torch.compile, and torch chooses the kernel by the device of the
first tensor. Where no native kernel was built for a device, the reference in plain PyTorch runs.
"""

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch

from pyengm.ops._cuda_module import load_cuda_module

LIBRARY = torch.library.Library("pyengm", "DEF")
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}  # ends the name of a native kernel
STORAGE_SUFFIX = SUFFIX | {torch.bfloat16: "bf16", torch.float16: "f16"}  # of ops that accept 16-bit types
BACKENDS = ("reference", "cpu", "cuda")


def _native_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"pyengm.{name}")
    except ModuleNotFoundError:
        return None


CPU_MODULE = _native_module("_C")
CUDA_MODULE, CUDA_OBSTACLE = load_cuda_module()
OBSTACLES = {"cpu": "were not built; see docs/guides/installation.md", "cuda": CUDA_OBSTACLE}  # where there are none


def _cpu_caller(module: ModuleType) -> Callable[[torch.device], Callable]:
    """For a device the function call(kernel_name, *scalars, rows=None) that runs a kernel there."""

    def call(kernel: str, *args, rows: tuple[int, int] | None = None) -> None:
        getattr(module, kernel)(*args)

    return lambda device: call


def _cuda_caller(module: ModuleType) -> Callable[[torch.device], Callable]:
    def on(device: torch.device) -> Callable:
        stream = torch.cuda.current_stream(device).cuda_stream

        def call(kernel: str, *args, rows: tuple[int, int] | None = None) -> None:
            if rows is None:
                getattr(module, kernel)(device.index, stream, *args)
            else:  # blocks that share a row exchange sums in memory of torch: kernels allocate nothing
                workspace = torch.empty(module.rows_workspace(*rows), dtype=torch.uint8, device=device)
                getattr(module, kernel)(device.index, stream, *args, workspace.data_ptr())

        return call

    return on


class Op:
    """One op, called as `op(*args, backend=None)` with the arguments of its schema.

    Args:
        schema: torch's schema string without the name space.
        check: raises on bad arguments. It runs before every kernel and in the fake, so it reads metadata only.
        fake: returns outputs of the right shape and type.
        reference: the op in plain PyTorch.
        native: native(call, *args) allocates outputs and runs `call(kernel_name, *scalars)`, with rows=(n, d) for
            kernels that sum over rows.
    """

    def __init__(self, schema: str, *, check: Callable, fake: Callable, reference: Callable, native: Callable):
        self.name = schema.partition("(")[0]
        self._check, self._reference, self._native = check, reference, native
        self._kernels = {}
        if CPU_MODULE is not None:
            self._kernels["cpu"] = self._run(_cpu_caller(CPU_MODULE))
        if CUDA_MODULE is not None:
            self._kernels["cuda"] = self._run(_cuda_caller(CUDA_MODULE))
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
            raise RuntimeError(f"the {backend} kernels of pyengm {OBSTACLES[backend]}")
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
        why = f", as they {OBSTACLES[device_type]}" if device_type in OBSTACLES else ""
        warnings.warn(
            f"pyengm has no native kernels for {device_type!r} tensors in this installation{why}. "
            "Plain PyTorch runs in their place: correct, but slower",
            stacklevel=3,
        )


def fail(op: str, expected: str, got: object) -> NoReturn:
    """Raises ValueError in the form that all ops have."""
    raise ValueError(f"{op}: expected {expected}, got {got}")


def require_no_grad(op: str, *tensors: torch.Tensor | None) -> None:
    """Raises where autograd would take the result of an op without a derivative for a constant."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(f"{op} has no derivative: call it under torch.no_grad() or on detached tensors")
