"""What is imported when: --version and --help answer at once, and Ctrl-C while the rest is imported ends quietly."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyengm

HEAVY = ("torch", "torchvision", "matplotlib", "numpy", "rich", "sklearn", "tyro")


def python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(Path(pyengm.__file__).parents[1])} | environment
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=False)


def loaded_after(code: str) -> set[str]:
    """The heavy packages that are imported once the code has run, which prints nothing else on its last line."""
    done = python(f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_version_and_help_import_nothing_heavy(word):
    assert loaded_after(f"from pyengm.cli import main\nassert main([{word!r}]) == 0") == set()


def test_an_unknown_command_does_not_import_torch():
    assert "torch" not in loaded_after("from pyengm.cli import main\nassert main(['tarin']) == 2")


def test_commands_leave_torchvision_and_matplotlib_to_those_that_need_them():
    assert not {"torchvision", "matplotlib", "sklearn"} & loaded_after("import pyengm.cli.commands")


def test_the_package_imports_its_parts_on_use():
    assert loaded_after("import pyengm") == set()
    assert "torch" in loaded_after("import pyengm\npyengm.ENGM")
    for name in pyengm.__all__:
        assert getattr(pyengm, name) is not None
    assert set(pyengm.__all__) <= set(dir(pyengm))


def test_what_type_checkers_see_is_what_is_imported():
    tree = ast.parse(Path(pyengm.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert {name for name, module in seen.items() if module == "pyengm"} == set(pyengm._PARTS)
    others = {name: module.removeprefix("pyengm.") for name, module in seen.items() if module != "pyengm"}
    assert others == pyengm._HOMES
    assert set(pyengm.__all__) == {*seen, "PyengmError", "UnsupportedOperationError"}


def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(pyengm.__file__).parents[1])}
    code = "print('begun', flush=True)\nimport sys\nfrom pyengm.cli import main\nsys.exit(main(['train', '--dry-run']))"
    for wait in (0.2, 0.5, 0.8, 1.1):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (130, "interrupted\n")


def test_a_backend_of_matplotlib_that_is_not_there(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pyengm.evaluation import plot_curves\n"
        "plot_curves([{'epoch': 0, 'loss': 1.0, 'train_robust': 0.5, 'best': True}], Path(sys.argv[1]), 'title')\n"
        "assert os.environ['MPLBACKEND'] == 'nowhere'"
    )
    done = python(code, str(tmp_path / "curves.png"), MPLBACKEND="nowhere")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
