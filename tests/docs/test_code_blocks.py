"""The code of the README and the documentation: `python` and `console` blocks run, commands of `sh` blocks parse."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from pyengm.cli import main
from pyengm.cli.completion import option_classes
from pyengm.cli.parser import parse

sybil = pytest.importorskip("sybil")  # of the extra `test`; machines that run the gpu tests alone may lack it
myst = pytest.importorskip("sybil.parsers.myst")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def pyengm_commands(text: str) -> list[list[str]]:
    """The words after `pyengm` of every command of a shell block."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.removeprefix("$ ").split(" && ")]
    found = []
    for line in words:
        if "-m" in line and line[line.index("-m") + 1 : line.index("-m") + 2] == ["pyengm"]:
            line = line[line.index("-m") + 1 :]
        if line[:1] == ["pyengm"]:
            found.append(line[1:])
    return found


def check_command(words: list[str]) -> None:
    """Parses the words of a command as the program does, without running it."""
    command, *options = words
    assert command in option_classes(), f"unknown command {command!r}"
    if command == "sweep" and "--" in options:
        options, runs = options[: options.index("--")], options[options.index("--") + 1 :]
        check_command(["train", *runs])
    if "--help" not in options and options not in (["bash"], ["zsh"], ["fish"]):
        parse(option_classes()[command], f"pyengm {command}", options)


class ShellParser(myst.CodeBlockParser):
    """Blocks of commands that are not run."""

    language = "sh"

    def evaluate(self, example):
        for words in pyengm_commands(example.parsed):
            check_command(words)


class ConsoleParser(myst.CodeBlockParser):
    """Blocks of `$ command` and words that its output contains."""

    language = "console"

    def evaluate(self, example):
        capsys = example.namespace["capsys"]
        for block in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
            command, _, expected = block.partition("\n")
            program, *words = shlex.split(command)
            assert program == "pyengm", f"expected a command of pyengm, found {command!r}"
            capsys.readouterr()
            status = main(words)
            printed = capsys.readouterr()
            assert status == 0, printed.err
            assert all(line in printed.out + printed.err for line in expected.splitlines()), printed


SYBIL = sybil.Sybil(parsers=[myst.PythonCodeBlockParser(), ShellParser(), ConsoleParser()], encoding="utf-8")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory from which modules are imported, as scripts do it; the modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_code_of(page, elsewhere, capsys):
    document = SYBIL.parse(page)
    document.namespace |= {"__name__": "__main__", "capsys": capsys}
    try:
        for example in document.examples():
            example.evaluate()
    finally:
        shutil.rmtree(elsewhere / "runs", ignore_errors=True)


def test_commands_are_found():
    text = "pip install . && pyengm train --eps 8/255\ntorchrun \\\n  -m pyengm train --quiet  # x\npyengm report a"
    expected = [["train", "--eps", "8/255"], ["train", "--quiet"], ["report", "a"]]
    assert pyengm_commands(text) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["tarin"],
        ["train", "--epochz", "3"],
        ["train", "--eps", "wide"],
        ["sweep", "--seeds", "0", "--", "--epochz", "3"],
    ],
)
def test_a_wrong_command_is_found(words):
    with pytest.raises((AssertionError, ValueError)):
        check_command(words)
