"""The files in bench/results name commands that exist."""

import re
from pathlib import Path

import pytest

from pyengm.cli.entry import COMMANDS

BENCH = Path(__file__).resolve().parents[2] / "bench"
FILES = [path for path in sorted((BENCH / "results").iterdir()) if path.suffix in (".txt", ".md")]


def commands(text: str) -> list[Path]:
    """The files that the commands in a text run: bench/..., bench_*.py and tools as modules."""
    found = [BENCH / path for path in re.findall(r"\bbench/([\w/]+\.(?:py|sh))", text)]
    found += [BENCH / name for name in re.findall(r"(?<![\w/])(bench_\w+\.py)", text)]
    return found + [BENCH / "tools" / f"{name}.py" for name in re.findall(r"-m tools\.(\w+)", text)]


def subcommands(text: str) -> set[str]:
    """The commands of the command line that a text runs."""
    return set(re.findall(r"^\$ .*\bpyengm (\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_exist(path):
    text = path.read_text()
    found = commands(text)
    assert found or subcommands(text) or path.name.startswith("reproduce_")  # those are results of pyengm reproduce
    assert subcommands(text) <= set(COMMANDS)
    assert [command for command in found if not command.exists()] == []
