"""Every sentence that gives a figure of speed or memory on a GPU is in gpu_claims.md, with where it is from."""

import ast
import functools
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "bench/results/gpu_claims.md").read_text()
DEVICE = re.compile(r"\b(GPUs?|CUDA|cuDNN|Triton|tensor cores?|[AHB]\d00|RTX \d{4})\b")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef
FIGURE = re.compile(
    r"\d ?(%|x\b|[mnuµ]?s\b|seconds?|minutes|hours|times|images/s|[KMGT]i?B\b|[GT]B/s|[GT]FLOP)|\btwice\b|\bhalf the\b"
)


@functools.cache
def texts() -> list[tuple[Path, str]]:
    """The pages of the documentation, and the docstrings of the package, that name a GPU."""
    found = [(path, path.read_text()) for path in [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]]
    for path in sorted([*(REPO / "pyengm").rglob("*.py"), *(REPO / "kernels").rglob("*.py")]):
        source = path.read_text()
        if DEVICE.search(source):
            parts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
            found += [(path, ast.get_docstring(node) or "") for node in parts]
    return [(path, text) for path, text in found if DEVICE.search(text)]


def figures(text: str) -> list[str]:
    """Sentences that name a GPU, or what is on one, and a figure; rows of tables are sentences of their own."""
    blocks = re.split(r"\n\s*\n|\n(?=\||- )", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    sentences = [" ".join(part.split()) for block in blocks for part in re.split(r"(?<=[.:;])\s", block)]
    return [sentence for sentence in sentences if DEVICE.search(sentence) and FIGURE.search(sentence)]


def test_every_figure_is_listed():
    known = " ".join(PAGE.split())
    missing = {f"{path.relative_to(REPO)}: {s}" for path, text in texts() for s in figures(text) if s not in known}
    assert missing == set(), "say in bench/results/gpu_claims.md where these are from: measured or modelled"


def test_every_listed_sentence_is_still_there():
    quoted = re.findall(r'"([^"]+)"', " ".join(PAGE.split()))
    everything = " ".join(" ".join(text.split()) for _, text in texts())
    assert [quote for quote in quoted if quote not in everything] == []
    assert quoted


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A step takes 3 ms on an H100.", 1),
        ("On a GPU it is 1.5 times\nfaster. A CPU takes 3 ms.", 1),
        ("CUDA kernels reach 90 % of the bandwidth", 1),
        ("| on a GPU | 12 images/s |\n| on a CPU | 3 images/s |", 1),
        ("CUDA 12 and 13; compute capability 9.0 on a GPU.", 0),
    ],
)
def test_what_is_a_figure(text, count):
    assert len(figures(text)) == count
