"""The environment of a run: versions, machine, state of the code, command line."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import pyengm
from pyengm.utils.distributed import world_size
from pyengm.utils.file_format import RUN_FORMAT

PACKAGES = ("torch", "torchvision", "triton", "numpy")
TIMEOUT = 10  # seconds, for each command
GIT_OVERRIDES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # they would make git look at another tree


def describe() -> dict[str, Any]:
    """Describes the environment of this process. It never fails, and it records no user or host names except those that
    the command line itself contains.

    Returns:
        Plain values for JSON, None for what is missing or unknown:

        - format: of the files of metrics and times, and of this description;
        - versions: of pyengm, python, the packages, cuda, cudnn and the driver;
        - machine: platform, cpu, cores that the process may use, memory_gib, gpus;
        - processes: the number of processes that share the run;
        - git: for pyengm (where it was imported from a checkout of it) and for the working_directory, the commit, the
          branch, and dirty, whether files under version control differ from the commit;
        - command: the words of the command line.
    """
    return {
        "format": RUN_FORMAT,
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "processes": world_size(),
        "git": {"pyengm": _checkout_of_pyengm(), "working_directory": git_state(Path())},
        "command": [*(Path(word).name for word in sys.argv[:1]), *sys.argv[1:]],
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Reads the state of the git checkout that contains a folder.

    Args:
        folder: Any folder.

    Returns:
        commit (None before the first one), branch (None where none is checked out) and dirty (untracked files do not
        count); None where there is no checkout or git fails.
    """
    printed = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if printed is None:
        return None
    lines = printed.splitlines()
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    commit, branch = head.get("branch.oid"), head.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("# ") for line in lines),
    }


def _checkout_of_pyengm() -> dict[str, Any] | None:
    folder = Path(pyengm.__file__).parent
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # not so in a .venv within someone's checkout
    return None if tracked is None else git_state(folder)


def _git(folder: Path, *arguments: str) -> str | None:
    return _printed("git", "--no-optional-locks", "-C", str(folder), *arguments)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"pyengm": pyengm.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    driver = _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or None
    return found | {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": None if driver is None else driver.splitlines()[0],
    }


def _cpu() -> str | None:
    """The name of the processor, from /proc on Linux and from sysctl on macOS."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if names:
        return names[0]
    return _printed("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine() or None


def _printed(*command: str) -> str | None:
    """The output of a command; None where it is missing, fails or does not end in time."""
    environment = {name: value for name, value in os.environ.items() if name not in GIT_OVERRIDES}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=TIMEOUT,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
