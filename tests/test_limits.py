"""No function is longer than a screen."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 60
KERNEL = "a Triton kernel is one function"

# file:function -> the reason why it may be longer
EXCEPTIONS = {
    "pyengm/kernels/conv_direct_sqnorm.py:conv_direct_sqnorm_kernel": KERNEL,
    "pyengm/kernels/conv_gram_sqnorm.py:conv_gram_sqnorm_kernel": KERNEL,
}


def sources() -> Iterator[Path]:
    yield ROOT / "setup.py"
    for folder in ("pyengm", "pyengm/kernels", "bench"):  # glob does not follow the link to kernels
        yield from sorted(ROOT.glob(f"{folder}/**/*.py"))


def long_functions() -> dict[str, int]:
    found = {}
    for path in dict.fromkeys(sources()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_LINES:
                    found[f"{path.relative_to(ROOT).as_posix()}:{node.name}"] = lines
    return found


def test_functions_are_short():
    found = long_functions()
    too_long = {name: lines for name, lines in found.items() if name not in EXCEPTIONS}
    assert not too_long, f"expected at most {MAX_LINES} lines; split these functions"
    assert set(EXCEPTIONS) <= set(found), "these exceptions are no longer needed"
