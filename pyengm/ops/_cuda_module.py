"""The CUDA module for the driver of this machine: an installation may hold one for each major release of CUDA.

pyengm._cuda12 is built with CUDA 12, pyengm._cuda13 with CUDA 13. A driver runs what was built with its own major
release of CUDA or with an earlier one ("CUDA Compatibility", NVIDIA).
"""

import ctypes
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
DRIVERS = {12: "525.60.13", 13: "580.65.06"}  # the first driver of each release on Linux


class CudaModule(NamedTuple):
    """The module, or None with the reason why there is none."""

    module: ModuleType | None
    obstacle: str


def load_cuda_module() -> CudaModule:
    """The newest of the modules that the driver runs; without a driver the newest, which can then run nothing."""
    releases = built_releases()
    if not releases:
        return CudaModule(None, "were not built; see PYENGM_CUDA in docs/guides/installation.md")
    driver = driver_release()
    usable = [release for release in releases if driver is None or release <= driver]
    if usable:
        return CudaModule(importlib.import_module(f"pyengm._cuda{max(usable)}"), "")
    obstacle = (
        f"were built with CUDA {' and '.join(map(str, releases))}, and the NVIDIA driver of this machine supports CUDA "
        f"{driver} at most: update the driver"
    )
    first = DRIVERS.get(min(releases))
    return CudaModule(None, f"{obstacle} to {first} or later" if first else obstacle)


def built_releases() -> list[int]:
    """The major releases of CUDA of which there is a module."""
    names = (module.name for module in pkgutil.iter_modules([str(PACKAGE)]))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"_cuda(\d+)", name)))


def driver_release() -> int | None:
    """The latest major release of CUDA that the installed driver supports; None where there is no driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()  # 1000 * major + 10 * minor; the call needs no GPU
    failed = library.cuDriverGetVersion(ctypes.byref(version))
    return None if failed else version.value // 1000
