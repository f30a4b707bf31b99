"""What is in the CUDA module, by cuobjdump."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from pyengm.ops._register import CUDA_MODULE


def find_cuobjdump() -> str | None:
    """From a CUDA toolkit, or the one that Triton brings along."""
    triton = importlib.util.find_spec("triton")
    beside = [str(Path(triton.origin).parent / "backends/nvidia/bin")] if triton and triton.origin else []
    return next(filter(None, (shutil.which("cuobjdump", path=path) for path in (None, *beside))), None)


def dump(*options: str) -> str:
    """What it prints of the module; skips the test where there is no module or no cuobjdump."""
    tool = find_cuobjdump()
    if CUDA_MODULE is None or tool is None:
        pytest.skip("no CUDA module was built, or cuobjdump was not found")
    command = [tool, *options, CUDA_MODULE.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
