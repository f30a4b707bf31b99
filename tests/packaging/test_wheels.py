"""Wheels for clusters: the configuration of cibuildwheel, .ci/wheels with stubs for its tools, and the smoke test."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import smoke
import torch
from helpers.packages import ROOT
from setuptools.errors import OptionError

from pyengm import ops

CUDA = ("12.9", "13.0")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the wheels with CUDA are for Linux")


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def settings(pyproject) -> dict:
    return pyproject["tool"]["cibuildwheel"]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class TestCibuildwheel:
    def test_every_python_is_built(self, pyproject, settings):
        named = re.findall(r"Python :: (3)\.(\d+)", " ".join(pyproject["project"]["classifiers"]))
        assert settings["build"].split() == [f"cp{major}{minor}-*" for major, minor in named]

    @linux
    def test_the_toolkit_of_each_release_is_installed(self, settings, tmp_path):
        executable(tmp_path / "dnf", '#!/bin/sh\necho "$@"\n')
        command = ["bash", "--posix", "-c", " && ".join(settings["linux"]["before-all"])]  # as cibuildwheel joins them
        env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        installed = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
        homes = settings["linux"]["environment"]["CUDA_HOME"].split(":")
        assert homes == [f"/usr/local/cuda-{release}" for release in CUDA]
        for release in CUDA:
            dashed = release.replace(".", "-")
            assert {f"cuda-nvcc-{dashed}", f"cuda-cudart-devel-{dashed}"} <= {*installed}

    def test_the_build_fails_without_nvcc_and_lists_its_gpus(self, settings, setup_py):
        environment = settings["linux"]["environment"]
        assert environment["PYENGM_CUDA"] == "1"
        flags = setup_py.cuda_arch_flags(environment["PYENGM_CUDA_ARCHS"])
        assert {f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)} <= {*flags}
        assert re.search(r"code=compute_\d+$", flags[-1]), "no PTX: later GPUs could not run it"
        with pytest.raises(OptionError):  # what the assertions above rest on
            setup_py.cuda_arch_flags("80,?")

    def test_what_is_run_exists(self, settings):
        assert "--exclude libgomp.so.1" in settings["linux"]["repair-wheel-command"]
        for command, kernels in (
            (settings["test-command"], "cpu"),
            (settings["linux"]["test-command"], "cpu cuda12 cuda13"),
        ):
            python, script, wanted = command.split(maxsplit=2)
            assert (python, wanted) == ("python", kernels)
            assert Path(script.format(project=ROOT)) == Path(smoke.__file__)


# In place of Python and of every program of the environments that it makes. $CONTENT: what the wheel is said to hold.
TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$LOG"
case "$(basename "$0") $*" in
  *" -m venv "*)
    mkdir -p "$3/bin"
    for name in python pip auditwheel; do cp "$0" "$3/bin/$name"; done
    ;;
  *" -m build --outdir "*) mkdir "$4" && touch "$4/pyengm-0-linux_x86_64.whl" ;;
  "auditwheel repair "*) mkdir "$5" && touch "$5/pyengm-0-manylinux.whl" ;;
  *" -m zipfile -l "*) printf '%s\\n' $CONTENT ;;
esac
"""


@linux
class TestScript:
    @pytest.fixture
    def run(self, tmp_path):
        def call(*versions: str, content: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
            env = {**os.environ, "PYTHON": str(executable(tmp_path / "tool", TOOL)), "LOG": str(tmp_path / "log")}
            env |= {"WHEELS": str(tmp_path / "wheels"), "CONTENT": content, "PYTORCH_INDEX": "", **variables}
            done = subprocess.run(
                [ROOT / ".ci/wheels", *versions], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            log = tmp_path / "log"
            return done, log.read_text().splitlines() if log.exists() else []

        if not (ROOT / ".ci").is_dir():
            pytest.skip("the sdist holds no .ci")
        return call

    def test_every_torch_gets_an_environment_of_its_own(self, run, tmp_path):
        done, log = run("2.7.0", "2.15.0+cu130", content="pyengm/_C.so pyengm/_cuda12.so pyengm/_cuda13.so")
        assert done.returncode == 0, done.stdout
        assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["pyengm-0-manylinux.whl"]
        assert any(line.startswith("auditwheel repair --exclude libgomp.so.1 ") for line in log)
        installs = [line.split(" --no-cache-dir ")[1] for line in log if "--no-cache-dir" in line]
        assert [re.sub(r"\S+/", "", line) for line in installs] == [
            "torch==2.7.0 pyengm-0-manylinux.whl",
            "torch==2.15.0+cu130 torchvision --index-url cu130",
            "torch==2.15.0+cu130 pyengm-0-manylinux.whl",
        ]
        assert "https://download.pytorch.org/whl/cu130" in installs[1]
        assert [line for line in log if "smoke" in line] == [
            f"python -I {ROOT}/tests/packaging/smoke.py cpu cuda12 cuda13"
        ] * 2
        assert sum("-m venv" in line for line in log) == 3

    def test_without_cuda(self, run):
        done, log = run("2.13.0+cpu", content="pyengm/_C.so", PYTORCH_INDEX="file:///flip")
        assert done.returncode == 0, done.stdout
        assert any("torchvision --index-url file:///flip/cpu" in line for line in log)
        assert log[-1] == f"python -I {ROOT}/tests/packaging/smoke.py cpu"

    def test_libgomp_inside_is_an_error(self, run, tmp_path):
        done, log = run("2.7.0", content="pyengm/_C.so pyengm.libs/libgomp-1.so")
        assert done.returncode == 1
        assert "libgomp is inside" in done.stdout
        assert not (tmp_path / "wheels").exists()
        assert not any("smoke" in line for line in log)

    def test_too_little_room(self, run, tmp_path):
        executable(tmp_path / "bin/df", "#!/bin/sh\nprintf 'Avail\\n3\\n'\n")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done, log = run("2.7.0", content="pyengm/_C.so", PATH=path)
        assert done.returncode == 1
        assert re.search(r"expected 9 GiB free in \S+ for an environment with torch; set TMPDIR", done.stdout)
        assert log == []


class TestSmoke:
    def test_passes_here(self):
        torch.manual_seed(0)
        smoke.check_ops("cpu")
        smoke.check_engm_step()

    def test_the_command(self):
        smoke.check_command()

    def test_a_wrong_kernel_fails(self, monkeypatch):
        right = ops.pgd_linf_step_
        monkeypatch.setattr(ops, "pgd_linf_step_", lambda *a, backend: right(*a, backend=backend) + (backend == "cpu"))
        with pytest.raises(AssertionError, match="kernel and reference differ"):
            smoke.check_ops("cpu")

    def test_a_wrong_sum_fails(self, monkeypatch):
        right = ops.row_norms
        monkeypatch.setattr(
            ops, "row_norms", lambda t, backend: right(t, backend=backend) * (1 + (backend == "cpu") / 99)
        )
        with pytest.raises(AssertionError, match="not close"):
            smoke.check_ops("cpu")

    def test_missing_kernels_fail(self, monkeypatch, tmp_path):
        monkeypatch.setattr(smoke, "CHECKOUT", tmp_path)
        with pytest.raises(AssertionError, match=r"expected the kernels \['cpu', 'tpu'\], got"):
            smoke.main(["cpu", "tpu"])

    def test_the_checkout_is_no_installation(self, monkeypatch):
        monkeypatch.setattr(smoke, "CHECKOUT", Path(smoke.pyengm.__file__).resolve().parents[1])
        with pytest.raises(AssertionError, match="expected an installed pyengm, got the checkout's"):
            smoke.main(["cpu"])
