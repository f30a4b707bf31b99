"""The report in a real browser: on a desktop and on a phone, in light and dark, and printed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.browser import browser, find_chromium
from helpers.reports import with_details

from pyengm.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")]
WIDTHS = {"desktop": 1280, "phone": 390, "narrow": 320}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(find_chromium() or "", tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory) -> Path:
    """A report with every section, on runs with long names."""
    folder = tmp_path_factory.mktemp("report")
    detailed = with_details(json.loads((trained / "results.json").read_text()))
    runs = [folder / name for name in ("first-run", "a-run-with-a-long-name-" + "x" * 60)]
    for run in runs:
        shutil.copytree(trained, run)
        (run / "evaluations").mkdir()
        (run / "evaluations/001.json").write_text(json.dumps(detailed))
    return write_report(runs, folder / "report.html", images=40, device="cpu")


# Elements that end beyond the window, but for those that scroll in a box.
OUTSIDE = """[...document.querySelectorAll('main *')]
  .filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => one.tagName + ' ' + one.textContent.slice(0, 40))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_it_fits_and_loads_nothing(page, file, tmp_path, device, dark):
    width = WIDTHS[device]
    page.open(file, width=width, dark=dark, mobile=device != "desktop")
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.requests() == [file.resolve().as_uri()]
    assert page.complaints() == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    page.screenshot(tmp_path / f"{device}-{'dark' if dark else 'light'}.png")  # to look at, in pytest's folder


# The contrast of WCAG 2 between every text and what is below it, in the page's own colours.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const below = one => { for (; one; one = one.parentElement) {
    const color = rgba(getComputedStyle(one).backgroundColor); if (color[3] > 254) return color; }
    return [255, 255, 255]; };
  const found = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || one.checkVisibility && !one.checkVisibility()) continue;
    const style = getComputedStyle(one), isSvg = one instanceof SVGElement;
    const text = rgba(isSvg ? style.fill : style.color);
    const [a, b] = [luminance(text), luminance(below(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5 && one.textContent.trim() !== '·') found.push(ratio.toFixed(2) + ' ' + one.textContent.trim());
  }
  return [...new Set(found)];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_can_be_read(page, file, dark):
    page.open(file, width=1280, dark=dark)
    assert page.evaluate(CONTRAST) == []


def test_dark_and_light_differ(page, file):
    found = {}
    for dark in (False, True):
        page.open(file, width=1280, dark=dark)
        line = "getComputedStyle(document.querySelector('.chart > svg path[style*=series]')).stroke"
        found[dark] = page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {line}]")
    assert found[False][0] != found[True][0]
    assert found[False][1] != found[True][1]


def test_wide_tables_scroll_in_their_own_box(page, file):
    page.open(file, width=390, mobile=True)
    wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
    assert page.evaluate(f"{wide}.length") > 0
    assert page.evaluate(f"{wide}.every(one => {{ one.scrollLeft = 9999; return one.scrollLeft > 0; }})")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 && one.ariaLabel)")


def test_it_prints(page, file, tmp_path):
    page.open(file, width=1280)
    page.print(tmp_path / "report.pdf")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type /Page\b", printed)) <= 20
