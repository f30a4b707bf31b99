"""A stand-in for NVIDIA's driver, which says what release of CUDA it supports and can do no more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = "int cuDriverGetVersion(int* version) {{ *version = {version}; return {status}; }}"


def fake_driver(folder: Path, version: int, status: int = 0) -> dict[str, str]:
    """The environment of a process that finds it; version: 12040 for CUDA 12.4, status: other than 0 for an error."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("the driver is one for Linux, and the stand-in for it needs gcc")
    source = folder / "driver.c"
    source.write_text(SOURCE.format(version=version, status=status))
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", folder / "libcuda.so.1"], check=True)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return {**os.environ, "LD_LIBRARY_PATH": path}
