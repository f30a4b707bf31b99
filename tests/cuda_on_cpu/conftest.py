"""Makes the modules of bench/ importable, as they are for its benchmarks; the two ways in to the emulator."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from cuda_on_cpu import compile_kernels
from cuda_on_cpu.emulator import Emulator
from cuda_on_cpu.ptx import compile_ptx

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

WAYS_IN = {"sources": compile_kernels, "ptx": compile_ptx}


@pytest.fixture(scope="session", params=["sources", pytest.param("ptx", marks=pytest.mark.slow)])
def way_in(request) -> ModuleType:
    """The module whose `build` makes the kernels: of their sources, or of nvcc's PTX."""
    return WAYS_IN[request.param]


@pytest.fixture(scope="session")
def emulated(request, way_in) -> Emulator:
    """The kernels by each way in, with all checks."""
    return request.getfixturevalue("emulator" if way_in is compile_kernels else "ptx_emulator")
