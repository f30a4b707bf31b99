"""A run in a notebook, executed by nbconvert."""

import os
from pathlib import Path

import pytest

import pyengm

CELLS = [
    "from pyengm.training import TrainConfig, train",
    "config = TrainConfig.from_flat(\n"
    "    train_indices='few.txt', model='cnn4', width=2, epochs=2, attack_steps=1, batch_size=30,\n"
    "    autoattack_examples=2, out='run',\n"
    ")\n"
    "results = train(config)",
    "sorted(results['best'])[:2]",
]


@pytest.mark.slow
def test_a_run_in_a_notebook(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(pyengm.__file__).parents[1]), *os.sys.path]))
    (tmp_path / "few.txt").write_text("\n".join(map(str, range(120))))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    execute = preprocessors.ExecutePreprocessor(timeout=600, kernel_name="python3")
    execute.preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    assert "after_apgd_ce" in notebook.cells[2].outputs[0]["data"]["text/plain"]
    shown = "".join(shown_text(output) for output in notebook.cells[1].outputs)
    assert shown.count("AutoAttack's images") == 2  # a row for each threat model, in one table
    assert shown.count("natural %") == 1
    assert "AutoAttack" in (tmp_path / "run/results.txt").read_text()
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def shown_text(output) -> str:
    """What a reader sees of an output: the text of a stream, or the plain form of rich content."""
    return output.get("text") or output.get("data", {}).get("text/plain", "")
