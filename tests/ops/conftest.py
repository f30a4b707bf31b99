"""The backends at hand, and fresh memory that is nan in every test of an op."""

from collections.abc import Iterator

import pytest
from helpers.memory import nan_in_fresh_memory

from pyengm.ops import available_backends

NATIVE = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True)
def fresh_memory() -> Iterator[None]:
    with nan_in_fresh_memory():
        yield


@pytest.fixture(params=NATIVE)
def backend(request) -> str:
    """Each backend with native kernels, which is also the name of its device."""
    return _built(request.param)


@pytest.fixture(params=["reference", *NATIVE])
def any_backend(request) -> str:
    return _built(request.param)


@pytest.fixture
def device(any_backend) -> str:
    return "cuda" if any_backend == "cuda" else "cpu"


def _built(name: str) -> str:
    if name not in available_backends():
        pytest.skip(f"the {name} kernels were not built")
    return name
