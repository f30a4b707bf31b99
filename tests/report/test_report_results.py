"""Results that are read, and files that hold none."""

import json

import pytest

from pyengm.errors import DataError
from pyengm.report.interval import wilson_interval
from pyengm.report.results import read_results


def read(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_results(path)


def test_old_results(tmp_path, content):
    results = read(tmp_path, content)
    assert results.models == ("best", "last")
    found = {(one.key.title, one.key.threat_text()): one for one in results.measured("best")}
    natural, attacked = found["natural", "none"], found["AutoAttack", "L-infinity, eps = 0.2"]
    assert (natural.value, natural.images) == (content["best"]["natural"], 360)
    assert natural.interval == wilson_interval(natural.value, 360)
    assert (attacked.value, attacked.images) == (content["best"]["autoattack"], 4)
    assert not any("after" in title for title, _ in found)
    assert all(results.detail(name) is None for name in ("standard_errors", "warnings", "trust"))


def test_new_results(tmp_path, detailed):
    results = read(tmp_path, detailed)
    assert results.models == ("best", "last")  # and neither standard_errors nor trust
    found = {one.key.title: one for one in results.measured("best") if one.key.threat is None or one.key.own_eps}
    assert found["natural"].images == 90  # as the standard error has it
    distance = next(one for one in results.measured("best") if one.key.name == "deepfool")
    assert (distance.value, distance.interval, distance.images) == (0.8421, None, None)


def test_results_of_a_later_version(tmp_path, content):
    content["best"]["tomorrow"] = 3.5
    content["tomorrow"] = {"a": [1, 2]}
    one = read(tmp_path, content).measured("best")[-1]
    assert (one.key.title, one.value, one.interval) == ("tomorrow", 3.5, None)


def test_results_of_another_format(tmp_path, content):
    assert read(tmp_path, {**content, "format": "pyengm results 1"}).models == ("best", "last")
    with pytest.raises(DataError, match=r"r.json has the format 'pyengm results 2', and this pyengm reads"):
        read(tmp_path, {**content, "format": "pyengm results 2"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "cannot read the results"),
        (lambda c: [1], "its content is a list"),
        (lambda c: {}, "no model in it has a natural accuracy"),
        (lambda c: {"best": {"natural": 0.5}}, "'threats' is missing"),
        (lambda c: {**c, "images": 3}, "holds no results"),
        (lambda c: {**c, "images": {"all": 0, "autoattack": 0}}, "the number of images is 0"),
        (lambda c: {**c, "threats": [{"norm": "l3", "eps": 1}]}, "known norms"),
        (lambda c: {**c, "best": {"natural": "0.5"}}, "natural of best is '0.5'; expected a number"),
        (lambda c: {**c, "best": {"natural": 1.5}}, "expected an accuracy from 0 to 1"),
        (lambda c: {**c, "best": {"natural": float("nan")}}, "natural of best is nan"),
        (lambda c: {**c, "trust": {"best": {"linf": {"checks": [{}], "images": 3}}}}, "'title' is missing"),
        (lambda c: {**c, "trust": [1]}, "holds no results"),
        (lambda c: {**c, "warnings": ["text"]}, "holds no results"),
        (lambda c: {"seeds": [1], "mean": c, "spread": {}}, "no model in it"),
    ],
)
def test_other_files(tmp_path, content, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, change(content))
    assert "\n" not in str(caught.value)
    assert "pyengm evaluate --out" in str(caught.value)
