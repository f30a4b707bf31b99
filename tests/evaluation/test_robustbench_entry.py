"""Entries of RobustBench's leaderboard."""

import json

import pytest
from helpers.evaluation import info, network

from pyengm import cli
from pyengm.attacks import ThreatModel
from pyengm.errors import ConfigError
from pyengm.evaluation import robustbench_entry
from pyengm.models import save_checkpoint

# Those of the JSON files in RobustBench's model_info/cifar10/Linf.
KEYS = {
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "unreliable",
}


def results(**changes):
    made = {
        "best": {"natural": 0.8492, "autoattack": 0.5208, "autoattack_l2": 0.61},
        "threats": [{"norm": "linf", "eps": 8 / 255}, {"norm": "l2", "eps": 0.5}],
        "images": {"all": 10000, "autoattack": 10000},
        "warnings": [],
        "trust": {"best": {"linf": {"checks": [{"passed": True}]}, "l2": {"checks": [{"passed": False}]}}},
    }
    return made | changes


def entry(threat, **changes):
    return robustbench_entry(results(**changes), "best", threat, architecture="resnet18", data="cifar10")


def test_the_entry():
    found = entry(ThreatModel("linf", 8 / 255))
    assert found.keys() == KEYS
    assert (found["eps"], found["clean_acc"], found["autoattack_acc"]) == ("8/255", "84.92", "52.08")
    assert not found["unreliable"]
    assert found["authors"] is None  # which only its authors know
    found = entry(ThreatModel("l2", 0.5))
    assert (found["eps"], found["autoattack_acc"], found["unreliable"]) == ("0.5", "61.00", True)


def test_warnings_make_it_unreliable():
    warned = [{"model": "best", "threat": {"norm": "linf", "eps": 8 / 255}, "kind": "square"}]
    assert entry(ThreatModel("linf", 8 / 255), warnings=warned)["unreliable"]


@pytest.mark.parametrize(
    "changes", [{"images": {"all": 10000, "autoattack": 1000}}, {"best": {"natural": 0.8, "pgd20": 0.5}}]
)
def test_less_than_autoattack_on_all_images(changes):
    with pytest.raises(ConfigError, match="needs AutoAttack on all 10000 test images"):
        entry(ThreatModel("linf", 8 / 255), **changes)


def test_the_command(tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", network(), info())
    (tmp_path / "few.txt").write_text("\n".join(map(str, range(10))))
    words = ["evaluate", str(tmp_path / "model.safetensors"), "--data", "digits", "--threat", "linf", "--eps", "0.3"]
    words += ["--indices", str(tmp_path / "few.txt"), "--robustbench-json", str(tmp_path / "entry.json")]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "entry.json").read_text())
    assert (found["architecture"], found["dataset"], found["eps"]) == ("cnn4", "digits", "0.3")
