"""Evaluation of checkpoints, in this process and in workers."""

import json
from dataclasses import dataclass

import pytest
import torch
from helpers.evaluation import CPU, L2, LINF, OPTIONS, data_for, info, make_images, network
from torch import nn

from pyengm.attacks import ThreatModel
from pyengm.errors import CheckpointError, DataError, NonFiniteError
from pyengm.evaluation import evaluate, evaluate_checkpoints, expected_calibration_error, parallel
from pyengm.evaluation.model_sources import check_matches_data
from pyengm.models import build, save_checkpoint

TRANSFERS = ("transfer_pgd20", "transfer_pgd20_l2")


@pytest.fixture
def files(tmp_path):
    model = network()
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("best", "last", "other")}
    save_checkpoint(paths["best"], model, info(epoch=3))
    save_checkpoint(paths["last"], model, info(epoch=3))
    save_checkpoint(paths["other"], network(seed=1), info(epoch=3))
    return paths


@pytest.mark.parametrize("processes", [1, 2])
def test_results_of_checkpoints(files, processes, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: processes * torch.get_num_threads())
    data = data_for(network())
    titles = []
    options = {"device": CPU, "on_attack": titles.append, "autoattack_examples": 5}
    results = evaluate_checkpoints(files, data, [LINF, L2], ["pgd20"], **options)
    names = ["best", "last", "other"]
    details = ["standard_errors", "calibration", "warnings", "trust"]
    assert list(results) == ["format", *names, "robust_overfitting", "threats", "images", *details]
    assert [list(results["trust"][name]) for name in names] == [["linf", "l2"]] * 3
    assert "at least 20" in results["trust"]["best"]["linf"]["reason"]
    accuracy = results["best"]["pgd20_l2"]
    assert results["standard_errors"]["best"]["pgd20_l2"] == pytest.approx((accuracy * (1 - accuracy) / 40) ** 0.5)
    assert results["best"] == results["last"]
    assert results["best"] == evaluate(network(), data, threat=[LINF, L2], attacks=["pgd20"], device=CPU)
    assert results["calibration"]["best"].keys() == results["best"].keys()
    confidence = network()(data.images / 255).softmax(1).amax(1)
    is_correct = network()(data.images / 255).argmax(1) == data.labels
    expected = expected_calibration_error(confidence, is_correct)
    assert results["calibration"]["best"]["natural"] == pytest.approx(expected, abs=1e-6)
    # Another model of the same epoch is another model.
    assert results["other"] == evaluate(network(seed=1), data, threat=[LINF, L2], attacks=["pgd20"], device=CPU)
    assert results["other"] != results["best"]
    assert results["robust_overfitting"] == 0
    assert results["threats"] == [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 0.6}]
    assert results["images"] == {"all": 40, "autoattack": 5}
    # Identical files are evaluated once: two models, under two threat models each.
    assert sum("natural" in title for title in titles) == 4 or titles[-1].startswith("4 jobs")
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoints_resume_where_they_stopped(processes, files, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: processes * torch.get_num_threads())
    data, messages = data_for(network()), []
    weak = [ThreatModel("linf", 0.01), ThreatModel("l2", 0.05)]
    options = {"device": CPU, "state": tmp_path / "state", "on_pass": lambda *message: messages.append(message)}
    first = evaluate_checkpoints(files, data, weak, ["apgd_ce", "fab_t"], **options)
    # best and last are one model; a file for each model, threat model and attack.
    assert len(list((tmp_path / "state").iterdir())) == 2 * 2 * 2
    titles = {f"{name}: {attack} ({threat})" for name in ("best", "other") for attack in ("APGD-CE", "FAB-T")
              for threat in weak}  # fmt: skip
    assert {title for title, *_ in messages} == titles
    assert all((done, total) == (1, 1) for _, done, total, _ in messages)
    accuracies = {title: robust for title, _, _, robust in messages}
    assert accuracies[f"best: APGD-CE ({weak[0]})"] == first["last"]["apgd_ce"]
    messages.clear()
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    second = evaluate_checkpoints(files, data, weak, ["apgd_ce", "fab_t"], **options, surrogate=files["other"])
    assert second["other"] == first["other"] | {name: second["other"][name] for name in TRANSFERS}
    black_box = evaluate(network(), data, threat=weak, attacks=[], device=CPU, surrogate=network(seed=1))
    assert {name: second["best"][name] for name in TRANSFERS} == {name: black_box[name] for name in TRANSFERS}
    assert messages == []


class Noisy(nn.Module):
    """A random defence, whose probabilities are returned in place of logits."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x + 0.2 * torch.rand_like(x)).softmax(dim=1)


@pytest.mark.parametrize("processes", [1, 2])
def test_warnings_name_model_and_threat(files, processes, monkeypatch, capfd):
    monkeypatch.setattr(parallel, "cores", lambda: processes * torch.get_num_threads())
    models = {"best": files["best"], "noisy": MadeSource()}
    data = data_for(network())
    results = evaluate_checkpoints(models, data, [LINF, L2], ["apgd_ce"], device=CPU)
    found = {(one["model"], one["threat"]["norm"], one["attack"], one["kind"]) for one in results["warnings"]}
    expected = {
        ("noisy", norm, "apgd_ce", kind) for norm in ("linf", "l2") for kind in ("randomized", "softmax_output")
    }
    assert expected <= found
    assert {model for model, *_ in found} == {"noisy"}
    text = capfd.readouterr()
    assert "WARNING" not in text.out + text.err
    assert "randomized defense" not in text.out + text.err
    for norm in ("linf", "l2"):
        passed = {check["name"]: check["passed"] for check in results["trust"]["noisy"][norm]["checks"]}
        assert not passed["outputs_repeat"]
        assert not passed["autoattack"]
        assert {check["name"] for check in results["trust"]["best"][norm]["checks"]} == passed.keys()
    assert json.loads(json.dumps(results)) == results


@dataclass(frozen=True)
class MadeSource:
    """A source of the random defence."""

    def load(self):
        return Noisy().eval()

    def check(self, data):
        """It takes all data of the tests."""

    def threats(self):
        return []

    def identity(self):
        return "noisy"


def test_a_surrogate_that_does_not_fit(files, tmp_path):
    path = tmp_path / "three.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, build(**OPTIONS | {"num_classes": 3}), info(num_classes=3))
    with pytest.raises(DataError, match=r"three.safetensors was trained on made: 3 classes.*; made has 10 classes"):
        evaluate_checkpoints(files, make_images(), [LINF], ["pgd20"], device=CPU, surrogate=path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_checkpoints(files, make_images(), [LINF], ["pgd20"], device=CPU, surrogate=tmp_path / "none")


def test_an_error_in_a_worker_is_raised(files, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2 * torch.get_num_threads())
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    save_checkpoint(files["other"], model, info())
    with pytest.raises(NonFiniteError):
        evaluate_checkpoints(files, make_images(), [LINF], ["fgsm"], device=CPU)


def test_no_overfitting_without_pgd20(files, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    results = evaluate_checkpoints(files, data_for(network(), 8), [LINF], ["fgsm"], device=CPU)
    assert "robust_overfitting" not in results
    assert "fgsm" in results["last"]


def test_check_matches_data(files):
    check_matches_data(info(), make_images(), files["best"])
    for data in (make_images(classes=9), make_images(side=9)):
        with pytest.raises(DataError, match=r"best.safetensors was trained on made: 10 classes.*\(1, 8, 8\); made has"):
            check_matches_data(info(), data, files["best"])
        with pytest.raises(DataError, match="was trained on"):
            evaluate_checkpoints(files, data, [LINF], ["fgsm"], device=CPU)
