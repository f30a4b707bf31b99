"""The package as users get it: sdist, wheel and editable install outside the checkout, the options of the build."""

import json
import re
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pybind11
import pytest
from helpers.cuda_driver import fake_driver
from helpers.packages import QUICK, ROOT, Venv, build_wheel, call, unpack
from setuptools.errors import OptionError

import pyengm

EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# The check of every installation; -I keeps the working directory and PYTHONPATH out.
PROBE = """
import json
from importlib.metadata import entry_points
from pathlib import Path
import torch
import pyengm, pyengm.kernels, pyengm._C

package = Path(pyengm.__file__).resolve().parent
(command,) = entry_points(group="console_scripts", name="pyengm")
print(json.dumps({
    "package": str(package),
    "native": str(Path(pyengm._C.__file__).resolve().parent),
    "kernels": str(Path(pyengm.kernels.__file__).resolve().parent),
    "version": pyengm.__version__,
    "typed": (package / "py.typed").is_file(),
    "command": command.load().__name__,
    "op": pyengm.ops.clip_weights(torch.tensor([0.5, 4.0]), 1.0, backend="cpu").tolist(),
}))
"""


def python(code: str, cwd: Path, **variables: str) -> str:
    return call(sys.executable, "-I", "-c", code, cwd=cwd, **variables)


@pytest.mark.parametrize("form", ["sdist", "wheel", "editable"])
def test_an_installation_works_outside_the_checkout(form, sdist, wheel, tmp_path):
    venv = Venv(tmp_path.resolve())
    package, kernels = venv.site / "pyengm", venv.site / "pyengm/kernels"
    if form == "editable":
        tree = unpack(sdist, venv.folder)
        package, kernels = tree / "pyengm", tree / "pyengm/kernels"
        venv.install("--editable", tree)
    else:
        venv.install(sdist if form == "sdist" else wheel)
    assert json.loads(venv.run(PROBE).splitlines()[-1]) == {
        "package": str(package),
        "native": str(package),
        "kernels": str(kernels),
        "version": sdist.name.removeprefix("pyengm-").removesuffix(".tar.gz"),
        "typed": True,
        "command": "main",
        "op": [1.0, 0.25],
    }


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("pyengm/**/*.py")}
    modules |= {f"pyengm/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("kernels/**/*.py")}
    native = f"pyengm/_C{EXT_SUFFIX}"
    installed = {name for name in files if ".dist-info/" not in name}
    data = {
        p.relative_to(ROOT).as_posix()
        for kind in ("paper_*/*.yaml", "examples/*.sbatch", "report/templates/*")
        for p in ROOT.glob(f"pyengm/{kind}")
    }
    assert installed == {*modules, *data, native, "pyengm/py.typed"}  # so no csrc, no tests and no libgomp either
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


LOADED = (
    "import pyengm; m = pyengm.ops._register.CUDA_MODULE; print(m and m.__file__, *pyengm.ops.available_backends())"
)


@pytest.mark.slow
def test_a_wheel_holds_a_module_of_each_toolkit(setup_py, sdist, tmp_path):
    """The second toolkit, of CUDA 99 by its word, is the first in disguise."""
    if not setup_py.find_nvcc():
        pytest.skip("nvcc was not found")
    own, nvcc = next(iter(setup_py.cuda_toolkits().items()))
    release = own.removeprefix("pyengm._cuda")
    other = toolkit(tmp_path / "cuda", f'case "$1" in --version) echo "release 99.0" ;; *) exec {nvcc} "$@" ;; esac')
    venv = Venv(tmp_path.resolve())
    homes = f"{Path(nvcc).parents[1]}:{other}"
    venv.install(build_wheel(sdist, venv.folder, PYENGM_CUDA="1", CUDA_HOME=homes, PYENGM_CUDA_ARCHS="90"))
    for driver, module in ((f"{release}000", release), (f"{release}090", release), ("99000", "99"), ("9000", None)):
        path = fake_driver(tmp_path, int(driver))["LD_LIBRARY_PATH"]
        printed = call(venv.python, "-I", "-c", LOADED, cwd=tmp_path, LD_LIBRARY_PATH=path)
        file, *backends = printed.splitlines()[-1].split()
        assert file == ("None" if module is None else str(venv.site / "pyengm" / f"_cuda{module}{EXT_SUFFIX}"))
        assert backends == ["reference", "cpu", *(["cuda"] if module else [])]


@pytest.fixture
def no_nvcc(setup_py, monkeypatch) -> None:
    monkeypatch.setattr(setup_py.shutil, "which", lambda *args, **kwargs: None)


def test_cuda_1_fails_without_nvcc(setup_py, no_nvcc, monkeypatch):
    monkeypatch.setenv("PYENGM_CUDA", "1")
    with pytest.raises(OptionError, match=r"PYENGM_CUDA=1 requires .* nvcc was not found .* set CUDA_HOME"):
        setup_py.find_nvcc()


@pytest.mark.parametrize("wish", ["auto", "AUTO", None])
def test_cuda_auto_goes_without_nvcc(setup_py, no_nvcc, monkeypatch, wish):
    monkeypatch.setenv("PYENGM_CUDA", wish) if wish else monkeypatch.delenv("PYENGM_CUDA", raising=False)
    assert setup_py.find_nvcc() == []


def toolkit(home: Path, script: str) -> Path:
    """A CUDA toolkit whose nvcc is this shell script."""
    nvcc = home / "bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def cuda_home(tmp_path) -> Path:
    """A CUDA toolkit with an nvcc that must not be run but for its version."""
    return toolkit(tmp_path / "cuda", 'echo "Cuda compilation tools, release 12.9, V12.9.86"; [ "$1" = --version ]')


def test_a_module_of_each_toolkit(setup_py, cuda_home, tmp_path, monkeypatch):
    later = toolkit(tmp_path / "later", 'echo "release 13.0"')
    monkeypatch.setenv("PYENGM_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", f"{cuda_home}:{later}")
    assert setup_py.cuda_toolkits() == {
        "pyengm._cuda12": f"{cuda_home}/bin/nvcc",
        "pyengm._cuda13": f"{later}/bin/nvcc",
    }


def test_toolkits_that_cannot_be_built_with(setup_py, cuda_home, tmp_path, monkeypatch):
    same = toolkit(tmp_path / "same", 'echo "release 12.4"')
    silent = toolkit(tmp_path / "silent", "true")
    monkeypatch.setenv("PYENGM_CUDA", "1")
    for homes, message in (
        (
            f"{cuda_home}:{same}",
            r"cuda/bin/nvcc and \S+same/bin/nvcc are both of CUDA 12; expected one of each release",
        ),
        (
            f"{cuda_home}:{tmp_path / 'none'}",
            r"CUDA_HOME is '\S+none'; expected a CUDA toolkit, with bin/nvcc, in each",
        ),
        (str(silent), r"expected '\S+silent/bin/nvcc --version' to print its release, got ''"),
    ):
        monkeypatch.setenv("CUDA_HOME", homes)
        with pytest.raises(OptionError, match=message):
            setup_py.cuda_toolkits()


def test_cuda_home_comes_first_and_cuda_0_ignores_it(setup_py, cuda_home, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(cuda_home))
    monkeypatch.setenv("PYENGM_CUDA", "1")
    assert setup_py.find_nvcc() == [str(cuda_home / "bin/nvcc")]
    monkeypatch.setenv("PYENGM_CUDA", "0")
    assert setup_py.find_nvcc() == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYENGM_CUDA": "yes"}, "PYENGM_CUDA is 'yes'; expected auto, 0 or 1"),
        (
            {"PYENGM_CUDA": "1", "PYENGM_CUDA_ARCHS": "80,ampere"},
            "PYENGM_CUDA_ARCHS has 'ampere'; expected entries such as 80, 9.0 or 90+PTX",
        ),
    ],
)
def test_a_bad_option_stops_the_build(sdist, cuda_home, tmp_path, variables, message):
    build = (sys.executable, "setup.py", "build_ext")
    printed = call(*build, cwd=unpack(sdist, tmp_path), succeeds=False, CUDA_HOME=str(cuda_home), **variables)
    assert message in printed


def test_arch_flags(setup_py):
    flags = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    for archs in ("80,90+PTX", "8.0;9.0+ptx", " sm_80 sm_90+PTX ", "8.0, 90+PTX"):
        assert setup_py.cuda_arch_flags(archs) == flags
    assert setup_py.cuda_arch_flags("10.0") == ["-gencode=arch=compute_100,code=sm_100"]
    assert setup_py.cuda_arch_flags("90a") == ["-gencode=arch=compute_90a,code=sm_90a"]


@pytest.mark.parametrize("archs", ["", "8", "80,", "ampere", "80+SASS", "native"])
def test_bad_archs(setup_py, archs):
    with pytest.raises(OptionError, match="PYENGM_CUDA_ARCHS has"):
        setup_py.cuda_arch_flags(archs)


def test_a_second_build_compiles_only_what_changed(sdist, tmp_path):
    tree = unpack(sdist, tmp_path)
    changed = tree / "csrc/cpu/philox.cpp"

    def build(**variables: str) -> list[str]:
        """The steps that ninja ran, in their order: what follows [1/2] and the like."""
        printed = call(sys.executable, "setup.py", "build_ext", cwd=tree, **QUICK, **variables)
        return re.findall(r"^\[\d+/\d+\] (.+)$", printed, re.MULTILINE)

    assert len(build()) == len(list(changed.parent.glob("*.cpp"))) + 1
    assert build() == []
    # As under build isolation, which installs pybind11 into another folder for each build.
    moved = tmp_path / "isolated"
    shutil.copytree(Path(pybind11.__file__).parent, moved / "pybind11")
    for variables in ({}, {"PYTHONPATH": str(moved)}):
        changed.touch()
        compiled, linked = build(**variables)
        assert f"-c {changed}" in compiled
        assert "-c " not in linked
    (headers,) = tree.glob("build/ninja*/pybind11-*")
    assert headers.resolve().is_relative_to(moved.resolve())


def test_this_installation_has_its_native_module():
    assert "cpu" in pyengm.ops.available_backends(), (
        f"{pyengm.__file__} has no pyengm._C: the tests would run on the references alone. "
        'Install the package: pip install ".[test]"'
    )


def test_everything_imports_without_triton(tmp_path):
    code = """
import sys
sys.modules["triton"] = None  # its import fails, and find_spec returns none
import pyengm, pyengm.cli, pyengm.kernels
print(pyengm.kernels.HAS_TRITON)
"""
    assert python(code, tmp_path).splitlines()[-1] == "False"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_the_native_module_shares_the_openmp_runtime_of_torch(tmp_path):
    code = """
import pyengm
lines = open("/proc/self/maps").read().splitlines()
print(*{line.split()[-1] for line in lines if "libgomp" in line}, sep=chr(10))
"""
    runtimes = python(code, tmp_path).splitlines()
    assert len(runtimes) == 1, f"expected one libgomp, that of torch, got {runtimes}"


@pytest.mark.skipif("cuda" not in pyengm.ops.available_backends(), reason="no CUDA module was built")
def test_the_cuda_module_without_a_gpu(tmp_path):
    code = """
import pyengm
try:
    pyengm.ops._register.CUDA_MODULE.clip_weights_f32(0, 0, 0, 0, 1, 1.0)  # device 0, default stream, one example
except RuntimeError as error:
    print(error)
"""
    assert python(code, tmp_path, CUDA_VISIBLE_DEVICES="").splitlines()[-1].startswith("pyengm on CUDA: ")


def test_ninja_is_a_program_and_no_script(setup_py, tmp_path, monkeypatch):
    """A script at ninja.BIN_DIR, as an older ninja in the environment outside a build leaves it, is passed over."""
    script = tmp_path / "ninja"
    script.write_text("#!/usr/bin/env python\n")
    script.chmod(0o755)
    monkeypatch.setattr(setup_py.ninja, "BIN_DIR", str(tmp_path))
    found = Path(setup_py.find_ninja())
    assert found != script
    assert not found.read_bytes().startswith(b"#!")
