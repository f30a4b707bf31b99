"""Which CUDA module an installation loads: by the release of CUDA that the driver supports, that of a stand-in here."""

import subprocess
import sys

import pytest
from helpers.cuda_driver import fake_driver

from pyengm.ops import _cuda_module
from pyengm.ops._cuda_module import built_releases, driver_release, load_cuda_module

DRIVER = "from pyengm.ops._cuda_module import driver_release; print(driver_release())"


def load(monkeypatch, releases: list[int], driver: int | None) -> tuple[object, str]:
    monkeypatch.setattr(_cuda_module, "built_releases", lambda: releases)
    monkeypatch.setattr(_cuda_module, "driver_release", lambda: driver)
    monkeypatch.setattr(_cuda_module.importlib, "import_module", lambda name: name)
    return load_cuda_module()


@pytest.mark.parametrize(
    ("releases", "driver", "chosen"),
    [([12, 13], 12, 12), ([12, 13], 13, 13), ([12, 13], 14, 13), ([12], 13, 12), ([13], 13, 13), ([12, 13], None, 13)],
)
def test_the_newest_that_the_driver_runs(monkeypatch, releases, driver, chosen):
    assert load(monkeypatch, releases, driver) == (f"pyengm._cuda{chosen}", "")


@pytest.mark.parametrize(
    ("releases", "driver", "built", "wish"),
    [
        ([13], 12, "CUDA 13", "update the driver to 580.65.06 or later"),
        ([12, 13], 11, "CUDA 12 and 13", "update the driver to 525.60.13 or later"),
        ([14], 13, "CUDA 14", "update the driver"),
    ],
)
def test_a_driver_that_runs_none_of_them(monkeypatch, releases, driver, built, wish):
    why = f"were built with {built}, and the NVIDIA driver of this machine supports CUDA {driver} at most: {wish}"
    assert load(monkeypatch, releases, driver) == (None, why)


def test_none_was_built(monkeypatch):
    why = "were not built; see PYENGM_CUDA in docs/guides/installation.md"
    assert load(monkeypatch, [], 13) == (None, why)


@pytest.mark.parametrize(
    ("version", "status", "release"), [(12040, 0, 12), (13000, 0, 13), (11080, 0, 11), (13000, 3, None)]
)
def test_the_release_is_the_drivers(tmp_path, version, status, release):
    env = fake_driver(tmp_path, version, status)
    assert subprocess.check_output([sys.executable, "-c", DRIVER], env=env, text=True).split() == [str(release)]


def test_without_a_driver(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(_cuda_module.ctypes, "CDLL", missing)
    assert driver_release() is None


def test_modules_of_other_pythons_and_other_names_do_not_count(monkeypatch, tmp_path):
    for name in ("_cuda12.so", "_cuda13.abi3.so", "_cuda14.cpython-39-x86_64-linux-gnu.so", "_cuda.so", "_cuda15x.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(_cuda_module, "PACKAGE", tmp_path)
    assert built_releases() == [12, 13]


@pytest.mark.skipif(not built_releases(), reason="no CUDA module was built")
def test_a_driver_that_is_too_old_is_named(tmp_path):
    """By `backend`, and by the warning of an op on CUDA tensors; the kernels of the CPU work on."""
    code = """
import warnings, torch
from pyengm import ops
from pyengm.ops import _register
print(ops.available_backends(), ops.clip_weights(torch.ones(1), 1.0).item())
try:
    ops.clip_weights(torch.ones(1), 1.0, backend="cuda")
except RuntimeError as error:
    print(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _register._warn_slow("cuda")
print(caught[0].message)
"""
    command = [sys.executable, "-c", code]
    backends, error, warning = subprocess.check_output(command, env=fake_driver(tmp_path, 9000), text=True).splitlines()
    assert backends == "('reference', 'cpu') 1.0"
    assert error.startswith("the cuda kernels of pyengm were built with CUDA ")
    assert "the NVIDIA driver of this machine supports CUDA 9 at most" in error
    assert "supports CUDA 9 at most: update the driver" in warning
    assert warning.startswith(
        "pyengm has no native kernels for 'cuda' tensors in this installation, as they were built"
    )
