"""Copies of the checkout, their builds, and fresh virtual environments to install them in, without a network."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
IGNORED = (".*", "build", "dist", "runs", "venv", "*.egg-info", "*.so", "__pycache__")
PIP = (sys.executable, "-m", "pip")
NO_NETWORK = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir")
QUICK = {"CXXFLAGS": "-O0"}  # for builds of which the speed does not matter


def call(*command: str | Path, cwd: Path, succeeds: bool = True, **variables: str) -> str:
    """Runs a command with the tools of this environment, by default without CUDA; returns all that it printed."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path, "PYENGM_CUDA": "0", **variables}
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode == 0) == succeeds, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """What a clone holds: builds and tests write nothing into the checkout itself."""
    return shutil.copytree(ROOT, folder / "pyengm", ignore=shutil.ignore_patterns(*IGNORED), symlinks=True)


def unpack(sdist: Path, folder: Path) -> Path:
    shutil.unpack_archive(sdist, folder)  # without a filter, which Python has from 3.11.4 on
    return folder / sdist.name.removesuffix(".tar.gz")


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """The wheel of an sdist or of a folder with the sources."""
    call(*PIP, "wheel", *NO_NETWORK, "-w", folder, source, cwd=folder, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


def load_setup() -> SimpleNamespace:
    """The functions of setup.py, which is run without a build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYENGM_CUDA", "0")
        patch.setattr(setuptools, "setup", lambda **options: None)
        return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))


class Venv:
    """A fresh virtual environment that sees this one's packages through links: all of them but pyengm."""

    def __init__(self, folder: Path):
        call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
        self.folder, self.python = folder, folder / "venv/bin/python"
        purelib = 'import sysconfig; print(sysconfig.get_path("purelib"))'
        self.site = Path(call(self.python, "-c", purelib, cwd=folder).strip()).resolve()
        links = folder / "links"
        links.mkdir()
        for site in (Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))):
            for entry in site.iterdir():
                if "pyengm" not in entry.name and not (links / entry.name).exists():
                    (links / entry.name).symlink_to(entry)
        (self.site / "links.pth").write_text(f"{links}\n")

    def install(self, *what: str | Path) -> None:
        call(*PIP, "--python", self.python, "install", *NO_NETWORK, *what, cwd=self.folder, **QUICK)

    def run(self, code: str) -> str:
        """Runs code with this Python, which sees neither the working directory nor PYTHONPATH."""
        return call(self.python, "-I", "-c", code, cwd=self.folder)
