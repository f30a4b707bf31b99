"""The CUDA module of pyengm on a CPU, in place of the native CPU kernels.

    with Emulator(build(folder)).replaces_cpu_kernels(seed=1, largest_grid=3):
        row_norms(torch.rand(3, 4))  # runs csrc/cuda/row_norms.cu

Threads are fibers in warps of 32 lanes; which thread and block runs next is drawn from the seed. Found are accesses
outside of a call's tensors and misaligned ones, reads of what nobody wrote, outputs that are not written, races,
collectives that not all threads of a warp or block reach, deadlocks, and undefined arithmetic. Not emulated are time,
caches, machine code, streams, graphs and several devices.
"""

import collections
import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from cuda_on_cpu.signatures import kernel_names, read_call

from pyengm.ops._register import CPU_MODULE


class Emulator:
    """A module that compile_kernels.py made.

    Args:
        path: the module.
        checks_memory: whether memory is checked; accesses of more than some gigabytes cannot be.
    """

    def __init__(self, path: Path, *, checks_memory: bool = True):
        # pybind11 keeps one module of each name; the last part of the name is that of its init function.
        spec = importlib.util.spec_from_file_location(f"{path.parent}._cuda", path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._library = ctypes.CDLL(str(path))
        self._library.emu_configure.argtypes = [ctypes.c_uint64, *4 * [ctypes.c_int]]
        self.path = path
        self._checks_memory = checks_memory and hasattr(self._library, "emu_tensor")
        if self._checks_memory:
            self._library.emu_tensor.argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_bool, ctypes.c_bool]
            self._library.emu_first_unwritten.argtypes = [ctypes.c_uint64]
            self._library.emu_first_unwritten.restype = ctypes.c_int64
            self._library.emu_host_error.restype = ctypes.c_char_p
        self.calls: collections.Counter[str] = collections.Counter()

    def configure(
        self, seed: int = 1, *, resident: int = 0, processors: int = 4, largest_grid: int = 0, last_blocks: int = 0
    ) -> None:
        """The schedules of the next launches.

        Args:
            seed: of the choice which thread and which block runs next.
            resident: blocks that run at a time; 0: drawn for each launch.
            processors: multiprocessors that the device reports.
            largest_grid: blocks of a launch at most, so that loops with a grid stride go round; 0: no limit.
            last_blocks: only so many blocks run, those with the largest indices; outputs are then not complete. 0: all.
        """
        self._library.emu_configure(seed, resident, processors, largest_grid, last_blocks)

    def release_stacks(self) -> None:
        """Returns the memory of its threads. A process may have some 65,000 mappings, and each of its stacks is two."""
        self._library.emu_release_stacks()

    def call(self, kernel: str, *args) -> None:
        """Calls a kernel with the arguments of the CPU's kernel of that name.

        Raises:
            RuntimeError: the kernel does what a GPU does not define, or hangs; the message says what and where.
        """
        self.calls[kernel] += 1
        call = read_call(kernel, args)
        if not call.has_workspace:
            return self._checked(kernel, args, call.memory)
        size = self.module.rows_workspace(int(call.numbers["n"]), int(call.numbers["d"]))
        workspace = torch.empty(size, dtype=torch.uint8)
        self._checked(kernel, (*args, workspace.data_ptr()), call.memory, workspace)

    def _checked(self, kernel, args, memory, workspace=None) -> None:
        run = partial(getattr(self.module, kernel), 0, 0, *args)
        if not self._checks_memory:
            return run()
        library = self._library
        try:
            for tensor in memory:
                library.emu_tensor(tensor.address, tensor.size, tensor.writable, tensor.has_values)
            if workspace is not None:
                library.emu_tensor(workspace.data_ptr(), workspace.nbytes, True, False)
            run()
            if error := library.emu_host_error():
                raise RuntimeError(f"emulated CUDA: {error.decode()}")
            for tensor in memory:
                byte = library.emu_first_unwritten(tensor.address)
                if byte >= 0:
                    where = f"byte {byte} of {tensor.size}"
                    raise RuntimeError(f"emulated CUDA: {kernel} does not write {tensor.name}, {where}")
        finally:
            library.emu_end_call()

    @contextmanager
    def replaces_cpu_kernels(self, **configuration) -> Iterator[None]:
        """Where an op runs its CPU kernel, the CUDA kernel runs; those of convolutions have none. See `configure`."""
        self.configure(**configuration)
        native = {name: getattr(CPU_MODULE, name) for name in kernel_names()}
        try:
            for name in native:
                setattr(CPU_MODULE, name, partial(self.call, name))
            yield
        finally:
            for name, kernel in native.items():
                setattr(CPU_MODULE, name, kernel)
