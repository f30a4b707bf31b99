"""Charts as SVG."""

import re
from xml.etree import ElementTree

from pyengm.report.chart import INK, SERIES_COLORS, Chart, Series

SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    Series("a <b>", [1, 2, 3], [10, 50, 90], color=0, band=([5, 45, 85], [15, 55, 95]), markers=True),
    Series("single", [2], [40], color=7, dash=1),
]


def chart(**options):
    return Chart("A & B", "what it shows", "x <", "y (%)", LINES, **options)


def element(text):
    return ElementTree.fromstring(str(text).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_element():
    found = element(chart(marks=[(2, 0)]).svg())
    assert found.get("role") == "img"
    assert found.get("aria-label") == "A & B. what it shows"
    assert {"x <", "y (%)"} <= {text.text for text in found.iter(f"{SVG}text")}
    lines = [line.get("d") for line in found.iter(f"{SVG}path") if "--series-0" in (line.get("style") or "")]
    assert any(line.count("L") == 2 for line in lines)


def test_colours_and_fonts_are_those_of_the_page():
    text = chart().svg()
    assert not re.findall(r"#[0-9a-f]{6}", text)
    assert "font:" not in text
    assert "DejaVu" not in text
    assert {f"var(--series-{i})" for i in (0, 1)} <= set(re.findall(r"var\([\w-]+\)", text))
    assert len({INK, *SERIES_COLORS}) == 1 + len(SERIES_COLORS)


def test_repeats_to_the_byte_and_ids_are_unique():
    first, second = chart().svg(), chart(root_x=True).svg()
    assert first == chart().svg()
    assert first != second
    ids = [name for text in (first, second) for name in re.findall(r' id="([^"]*)"', text)]
    assert len(ids) == len(set(ids)) > 0
    for text in (first, second):
        used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
        assert used <= set(re.findall(r' id="([^"]*)"', text))


def test_rows_of_a_line():
    assert LINES[0].rows[0] == ("1", "10", "5.0 to 15.0")
    assert LINES[1].rows == [("2", "40", "")]
