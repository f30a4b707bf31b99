"""Imports of the package: layered, without cycles, and none inside functions."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pyengm

ROOT = Path(pyengm.__file__).parent

# The parts of the package that each part may import. `pyengm` itself, the root, imports what it exports.
BASE = {"errors", "utils"}
ENGINE = BASE | {"kernels", "ops", "pergrad"}
COMPONENTS = ENGINE | {"attacks", "data", "models", "optim"}
TRAINING = COMPONENTS | {"methods", "evaluation"}
ALLOWED = {
    "errors": set(),
    "utils": {"errors"},
    "kernels": set(),
    "ops": BASE | {"kernels"},
    "pergrad": BASE | {"kernels", "ops"},
    "optim": ENGINE,
    "data": BASE | {"ops"},
    "models": BASE | {"ops"},
    "attacks": BASE | {"ops"},
    "analysis": ENGINE | {"attacks"},
    "evaluation": BASE | {"ops", "attacks", "data", "models"},
    "methods": COMPONENTS,
    "training": TRAINING,
    "report": TRAINING | {"training"},
    "comparison": TRAINING | {"training", "report"},
    "sweep": TRAINING | {"training", "comparison"},
    "reproduce": TRAINING | {"analysis", "training", "comparison", "sweep"},
    "cli": TRAINING | {"analysis", "training", "report", "comparison", "sweep", "reproduce", "pyengm"},
    "__main__": {"cli"},
    "integrations": ENGINE | {"optim"},
    "examples": {"pyengm", "integrations"},
    "pyengm": COMPONENTS | {"analysis", "comparison", "evaluation", "methods", "report", "training"},
}

# (importing module, imported part), with the reason.
EXCEPTIONS = {
    ("pyengm.training.environment", "pyengm"): "reads __version__, which is complete before it is called",
}


def modules() -> dict[str, Path]:
    """Files by the name of their module; kernels, which are another tree, are left out."""
    files = sorted(path for path in ROOT.rglob("*.py") if "kernels" not in path.relative_to(ROOT).parts)
    names = (path.relative_to(ROOT.parent).with_suffix("").parts for path in files)
    return {".".join(name).removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported from pyengm; a relative import fails the test."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "pyengm")


def module_of(name: str) -> str:
    """The module that holds a dotted name, or is it."""
    while name not in MODULES and "." in name and not name.startswith("pyengm.kernels"):
        name = name.rpartition(".")[0]
    return name


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_layered(module):
    imported = {part_of(module_of(name)) for name in imports(parse(module))}
    forbidden = imported - ALLOWED[part_of(module)] - {part_of(module)}
    assert forbidden == {part for name, part in EXCEPTIONS if name == module}


@pytest.mark.parametrize("module", MODULES)
def test_no_function_imports_from_the_package(module):
    functions = [node for node in ast.walk(parse(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [name for function in functions for name in imports(function)] == []


def test_modules_have_no_cycles():
    graph = {
        module: {
            module_of(name) for name in imports(parse(module)) if (module, part_of(module_of(name))) not in EXCEPTIONS
        }
        for module in MODULES
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports form a cycle: {' -> '.join(error.args[1])}")


def test_the_layers_have_no_cycles():
    tuple(TopologicalSorter({part: imported - {part} for part, imported in ALLOWED.items()}).static_order())
