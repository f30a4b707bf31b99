"""The sdist and the wheel, built once, and the functions of setup.py."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.packages import build_wheel, call, copy_checkout, load_setup


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("checkout"))
    call(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=copy)
    (archive,) = (copy / "dist").iterdir()
    return archive


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def setup_py() -> SimpleNamespace:
    return load_setup()
