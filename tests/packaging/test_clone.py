"""A clone after `pip install .`: all that the README runs with Python works in its root, and builds leave no litter."""

import re
import shlex
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers.packages import QUICK, ROOT, Venv, build_wheel, call, copy_checkout

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = ("python -m pyengm.examples.adamw_vit 2", "python -m pytest tests/ops")
EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Venv:
    return Venv(tmp_path_factory.mktemp("environment").resolve())


@pytest.fixture(scope="module")
def clone(venv) -> Path:
    """A clone in whose root the README's first command was run."""
    root = copy_checkout(venv.folder)
    venv.install(root)
    return root


def python(venv: Venv, clone: Path, *arguments: str) -> str:
    """Python as a user starts it in the root of the clone: the working directory or the script's is searched first."""
    return call(venv.python, *arguments, cwd=clone, PYTHONPATH="", CUDA_VISIBLE_DEVICES="")


def test_the_package_of_the_clone_is_imported_and_complete(venv, clone):
    code = "import pyengm; print(pyengm.__file__, pyengm.kernels.__file__, *pyengm.ops.available_backends())"
    package, kernels, *backends = python(venv, clone, "-c", code).split()
    assert Path(package) == clone / "pyengm/__init__.py"
    assert Path(kernels) == clone / "pyengm/kernels/__init__.py"
    assert backends == ["reference", "cpu"]


def test_modules_run(venv, clone):
    assert python(venv, clone, "-m", "pyengm", "--version").split()


def test_pytest_collects_the_tests(venv, clone):
    collected = python(venv, clone, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/ops")
    assert re.search(r"\d+(/\d+)? tests collected", collected)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documentation(venv, clone, command):
    _, *arguments = shlex.split(command)
    if "pytest" in arguments:
        arguments += ["--collect-only", "-q", "-p", "no:cacheprovider"]
    python(venv, clone, *arguments)


def test_python_of_the_readme(venv, clone):
    assert BLOCKS
    python(venv, clone, "-c", "\n".join(BLOCKS))


def test_leftovers_of_earlier_builds_do_not_reach_a_wheel(venv, clone, tmp_path):
    """Those of another Python, of a module that is gone, and of a build with CUDA."""
    other_python = "pyengm/_C.cpython-39-x86_64-linux-gnu.so"
    gone = ("pyengm/gone.py", f"pyengm/_cuda12{EXT_SUFFIX}")
    (built,) = clone.glob("build/lib*")
    for leftover in (clone / other_python, *(folder / name for folder in (clone, built) for name in gone[1:])):
        leftover.write_text("")
    (built / gone[0]).write_text("")
    wheel = build_wheel(clone, tmp_path, **QUICK)
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == [f"pyengm/_C{EXT_SUFFIX}"]
    assert gone[0] not in names
    assert not (clone / gone[1]).exists(), "a module without CUDA was built, and the clone's own kept the old one"
    assert (clone / other_python).exists()


@pytest.mark.slow
def test_the_cuda_module_works_in_a_clone(setup_py, tmp_path):
    if not setup_py.find_nvcc():
        pytest.skip("nvcc was not found")
    venv = Venv(tmp_path.resolve())
    root = copy_checkout(venv.folder)
    call(venv.python, "setup.py", "build_ext", cwd=root, PYENGM_CUDA="1", **QUICK)
    code = "from pyengm.ops import _register as r, available_backends as b; print(r.CUDA_MODULE.__file__, *b())"
    file, *backends = python(venv, root, "-c", code).splitlines()[-1].split()
    assert Path(file).parent == root / "pyengm"
    assert backends == ["reference", "cpu", "cuda"]
