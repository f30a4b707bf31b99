"""The table of a comparison as Markdown, LaTeX and CSV."""

import csv
import io
import json
import re

import pytest
from helpers.run_folders import write_run

from pyengm.comparison import as_csv, as_latex, as_markdown, compare
from pyengm.comparison.formats import details_of, escape_latex


@pytest.fixture
def table(tmp_path):
    runs = [write_run(tmp_path / f"{eps}-{seed}", seed, eps=eps) for eps in (0.1, 8 / 255) for seed in (0, 1)]
    named = ",".join(str(path) for path in runs[:2])
    return compare([f"A_1 & 50% | {{x}}={named}", *runs[2:]]).table


def test_markdown(table):
    lines = as_markdown(table).splitlines()
    assert lines[0].startswith("|  | eps | seeds | natural best (%) |")
    assert lines[1].startswith("| --- | --- | ---: | ---: |")
    assert lines[2].startswith("| A_1 & 50% \\| {x} | 0.1 | 2 | 40.50 ± 0.71 |")
    assert lines[3].startswith("| eps=8/255 | 8/255 | 2 | 40.50 ± 0.71 |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4 + len(table.columns)}


def test_csv_reads_back(table):
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["name"] for row in rows] == ["A_1 & 50% | {x}", "eps=8/255"]
    assert [float(row["eps"]) for row in rows] == [0.1, 8 / 255]
    assert [row["seeds"] for row in rows] == ["0 1", "0 1"]
    for row, expected in zip(rows, table.rows, strict=True):
        for column, value in zip(table.columns, expected.values, strict=True):
            # Both ways through the shortest decimal that is read back as the same number.
            assert float(row[f"{column.title} ({column.unit}) mean"]) == value.mean
            assert float(row[f"{column.title} ({column.unit}) std"]) == value.spread


def test_csv_of_values_that_are_not_there(tmp_path):
    runs = [write_run(tmp_path / select, select_on=select, optimizer="msgd") for select in ("val", "none")]
    rows = list(csv.DictReader(io.StringIO(as_csv(compare(runs).table))))
    assert [row["natural best (%) mean"] for row in rows] == ["30.0", ""]
    assert rows[0]["natural best (%) std"] == ""


def test_latex(table):
    text = as_latex(table)
    assert r"A\_1 \& 50\% | \{x\} & 0.1 & 2 & 40.50 $\pm$ 0.71 &" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {width}
    assert_valid(text)


def test_latex_of_negative_numbers(tmp_path):
    run = write_run(tmp_path / "run")
    content = json.loads((run / "results.json").read_text())
    content["last"]["pgd20"] = 2 * content["best"]["pgd20"]  # and so the overfitting is -100 %
    (run / "results.json").write_text(json.dumps(content))
    assert " & $-$100.00 & " in as_latex(compare([run]).table)


def assert_valid(text):
    """Every special character is escaped, braces are balanced, and commands are those of tabular and booktabs."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    assert not re.findall(r"(?<!\\)[#%_]", body)
    bare = re.sub(r"\\[{}]", "", body)
    assert bare.count("{") == bare.count("}")
    assert body.count("$") % 2 == 0
    known = {"begin", "end", "toprule", "midrule", "bottomrule", "pm", "textbackslash", "textasciitilde"}
    assert set(re.findall(r"\\([a-z]+)", body)) <= known | {"textasciicircum"}
    assert body.isascii()


@pytest.mark.parametrize("text", ["a_b", "50%", "a&b", "#1", "$x$", "{x}", "~", "^", "\\", "\\&", "± 1"])
def test_every_special_character_is_escaped(text):
    assert_valid(escape_latex(text))


def test_what_the_columns_are(table):
    lines = details_of(table)
    assert "PGD-20 best, PGD-20 last: L-infinity, eps of the training, 360 images" in lines
    assert "AutoAttack best, AutoAttack last: L-infinity, eps of the training, 50 images" in lines
