"""What every test shares: a test marked gpu skips itself where there is no CUDA device; the emulators of CUDA."""

import os
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import compile_kernels
from cuda_on_cpu.emulator import Emulator
from cuda_on_cpu.ptx import compile_ptx

if "PYTEST_XDIST_WORKER" in os.environ:  # workers, and the processes that their tests start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def built(way_in: ModuleType, folder: pytest.TempPathFactory) -> Emulator:
    if (reason := way_in.obstacle()) is not None:
        pytest.skip(reason)
    return Emulator(way_in.build(folder.mktemp("emulated_cuda")))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> Emulator:
    """The sources of the CUDA kernels on the CPU, with all checks; one build for all tests."""
    return built(compile_kernels, tmp_path_factory)


@pytest.fixture(scope="session")
def ptx_emulator(tmp_path_factory) -> Emulator:
    """What nvcc makes of them, on the same terms: for slow tests."""
    return built(compile_ptx, tmp_path_factory)
