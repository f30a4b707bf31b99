"""The backends at hand, and fresh memory that is nan in every test of an op."""

import math
import zlib
from collections.abc import Iterator

import pytest
from helpers.memory import nan_in_fresh_memory

from pyengm.ops import available_backends

# The CUDA kernels on the CPU, with grids as on a GPU and with grids so small that every loop over blocks goes round.
LARGEST_GRIDS = {"emulated cuda": 0, "emulated cuda, 3 blocks": 3, "emulated ptx": 0, "emulated ptx, 3 blocks": 3}
PTX = [name for name in LARGEST_GRIDS if "ptx" in name]  # of nvcc: slow tests, all of them
NATIVE = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu), *LARGEST_GRIDS)
LARGEST_EMULATED, MOST_EMULATED = 50_000, 100  # elements and examples; longer tests of the emulator are slow ones
SLOW_EMULATED = "test_16_bit_types_are_computed_in_float32_and_rounded_once"  # a block for each of 65,536 rows


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        backends = {params.get("backend"), params.get("any_backend")}
        if backends & {*PTX}:
            item.add_marker(pytest.mark.slow)
        elif backends & {*LARGEST_GRIDS}:
            shape = params.get("shape", (0,))
            large = math.prod(shape) > LARGEST_EMULATED or shape[0] > MOST_EMULATED
            if large or item.name.startswith(SLOW_EMULATED):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fresh_memory() -> Iterator[None]:
    with nan_in_fresh_memory():
        yield


@pytest.fixture(params=NATIVE)
def backend(request) -> Iterator[str]:
    """Each backend with native kernels, by the name of its device."""
    yield from _kernels(request)


@pytest.fixture(params=["reference", *NATIVE])
def any_backend(request) -> Iterator[str]:
    yield from _kernels(request)


@pytest.fixture
def device(any_backend) -> str:
    return "cuda" if any_backend == "cuda" else "cpu"


def _kernels(request) -> Iterator[str]:
    name = request.param
    if name in LARGEST_GRIDS:
        seed = zlib.crc32(request.node.nodeid.encode())
        print(f"schedules of seed {seed}, at most {LARGEST_GRIDS[name] or 'all'} blocks")
        emulator = request.getfixturevalue("ptx_emulator" if name in PTX else "emulator")
        with emulator.replaces_cpu_kernels(seed=seed, largest_grid=LARGEST_GRIDS[name]):
            yield "cpu"
    elif name not in available_backends():
        pytest.skip(f"the {name} kernels were not built")
    else:
        yield name
