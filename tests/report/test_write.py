"""The file of a report."""

import getpass
import json
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import pyengm
from pyengm import cli
from pyengm.errors import ConfigError, StorageError
from pyengm.report import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checked(HTMLParser):
    """Checks that elements are closed in order, and collects them."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def report(tmp_path, *runs, **options) -> tuple[str, Checked]:
    path = write_report(runs, tmp_path / "out.html", images=40, device="cpu", **options)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text, Checked(text)


def test_results_without_checks(run, content, tmp_path):
    (run / "results.json").write_text(json.dumps(content))
    _, page = report(tmp_path, run)
    assert "No checks of trust were recorded for first-run." in page.text


def test_a_run(run, tmp_path):
    text, page = report(tmp_path, run)
    results = json.loads((run / "results.json").read_text())
    for section in ("Summary", "Accuracy", "Training", "Images under attack", "Confusion", "Accuracy by class"):
        assert section in page.text
    assert f"{100 * results['best']['autoattack']:.2f}" in page.text
    assert f"{100 * results['last']['pgd20_l2']:.2f}" in page.text
    assert "not checked: AutoAttack has 4 images here" in page.text
    assert len(page.all("img")) == 30
    assert {"Accuracy", "Loss", "Clipped examples"} <= set(re.findall(r"<figcaption>(.*?)</figcaption>", text))
    assert "weight_decay" in page.text
    assert pyengm.__version__.split("+")[0] in page.text


def test_it_needs_nothing_else(run, tmp_path):
    text, page = report(tmp_path, run)
    addresses = [value for _, found in page.found for name, value in found.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith(("data:image/png", "#")) for address in addresses if address)
    assert page.all("script", "link", "iframe") == []
    assert "@import" not in text
    targets = {found["id"] for _, found in page.found if "id" in found}
    assert {found["href"][1:] for found in page.all("a")} <= targets


def test_it_can_be_read_aloud(run, tmp_path):
    _, page = report(tmp_path, run)
    assert all(found.get("scope") for found in page.all("th"))
    assert all(found.get("alt") for found in page.all("img"))
    for found in page.all("svg"):
        assert found.get("aria-hidden") == "true" or (found["role"] == "img" and found["aria-label"])
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]


def test_it_repeats_to_the_byte(run, tmp_path):
    first, _ = report(tmp_path, run)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(run, moved)
    assert report(tmp_path, moved / run.name)[0] == first


def test_it_names_no_folder_user_or_host(run, tmp_path, detailed):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["data_dir"] = "/home/carol/data sets"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((run / "environment.json").read_text())
    environment[-1]["command"] += ["--out", "/home/carol/runs/x", "--data-dir=/home/carol/data sets"]
    (run / "environment.json").write_text(json.dumps(environment))
    detailed["evaluation"] = {"target": "/home/carol/models/best.safetensors", "data": "~carol/images"}
    detailed["warnings"][0]["text"] = "see /home/carol/log.txt"
    (tmp_path / "carol.json").write_text(json.dumps(detailed))
    (tmp_path / "carol.json").rename(tmp_path / "mine.json")
    text, page = report(tmp_path, run, tmp_path / "mine.json")
    assert "carol" not in text
    assert "data sets" in page.text
    assert "best.safetensors" in page.text
    words = {str(Path.home()), str(tmp_path), socket.gethostname(), f"/{getpass.getuser()}/"}
    assert [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", page.text)] == []
    assert not re.search(r"(?<![\w<.])/(?:home|root|tmp|work|usr|opt|Users|mnt|data)/", text)


def test_results_alone(tmp_path, detailed):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(detailed))
    text, page = report(tmp_path, path)
    assert "No images, confusions and accuracies of classes, as they need a run folder: mine." in page.text
    assert "No metrics of a training: mine." in page.text
    assert page.all("img") == []
    assert "Accuracy against eps, L-infinity" in page.text
    assert "1 of 2 checks pass" in page.text
    assert "not checked: too few images" in page.text.lower()
    assert "the outputs are &lt;probabilities&gt;" in text  # texts of files are no markup
    assert "0.8421" in page.text


def test_several_runs_side_by_side(run, tmp_path, detailed):
    other = Path(shutil.copytree(run, tmp_path / "second <run>"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["optimizer"]["weight_decay"] = 0.123
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    detailed["best"]["fgsm"] = 0.4567
    (tmp_path / "mine.json").write_text(json.dumps(detailed))
    text, page = report(tmp_path, run, other, tmp_path / "mine.json")
    assert "<run>" not in text
    assert "second &lt;run&gt;" in text
    groups = [found for found in page.all("th") if found.get("scope") == "colgroup"]
    assert [found["colspan"] for found in groups] == ["2", "2", "2"]
    row = re.search(r"<tr><th scope=\"row\">FGSM</th>.*?</tr>", text)[0]
    assert row.count("\N{EN DASH}") == 5
    assert "45.67" in row
    assert re.findall(r'<tr class="differs"><th scope="row">(\w+)</th>', text) == ["weight_decay"]
    assert len(page.all("img")) == 60


def test_a_run_without_curves_and_environment(run, tmp_path):
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    _, page = report(tmp_path, run)
    assert "No metrics of a training: first-run." in page.text
    assert "Environment of the last start Not recorded." in page.text


def test_metrics_with_gaps(run, tmp_path):
    rows = [{"epoch": 0, "loss": float("nan")}, {"epoch": 1, "loss": 1.5, "natural": None}, {"epoch": 2}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, _ = report(tmp_path, run)
    assert re.findall(r"<figcaption>(\w+)</figcaption>", text) == ["Loss"]


def test_files_that_exist_stay(run, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"report.html exists and is not overwritten; choose another --out"):
        write_report([run], out)
    assert out.read_text() == "mine"
    with pytest.raises(StorageError, match="cannot make the folder"):
        write_report([run], out / "below" / "x.html", device="cpu")


def test_no_images():
    with pytest.raises(ConfigError, match="images is 0; expected at least 1"):
        write_report(["run"], "out.html", images=0)


def test_nothing_is_written_to_the_run(run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report(tmp_path, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "first-run", "--images", "20", "--device", "cpu"]) == 0
    assert "report: report.html" in capsys.readouterr().out
    assert "Robustness of first-run" in Path("report.html").read_text()
    assert cli.main(["report", "first-run"]) == 1
    assert "report.html exists and is not overwritten" in capsys.readouterr().err
