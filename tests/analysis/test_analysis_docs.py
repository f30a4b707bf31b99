"""The Python example and the names of docs/analysis.md."""

import re
from pathlib import Path

import pytest
import torch

from pyengm.cli.analyses import ANALYSES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"
TEXT = DOCS.read_text() if DOCS.is_file() else ""
pytestmark = pytest.mark.skipif(not TEXT, reason="docs are not installed")


def test_the_example_runs(net, images, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(example, {"model": net.float(), "images": images.float(), "labels": labels, "torch": torch})
    assert (tmp_path / "fosc.png").stat().st_size > 1000


def test_the_table_has_every_analysis():
    assert set(re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE)) == set(ANALYSES)
