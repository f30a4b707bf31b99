"""The Python example of docs/report.md runs."""

import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"


@pytest.mark.skipif(not DOCS.is_file(), reason="needs the documentation")
def test_example(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("engm", "msgd"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    exec(example, {})
    assert "Robustness of engm, msgd" in Path("compared.html").read_text()
