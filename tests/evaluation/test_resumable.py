"""Evaluations that are killed and go on where they stopped, for attacks other than AutoAttack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import killed_evaluation
from helpers.evaluation import CPU, data_for, network

from pyengm.attacks import PGD, ThreatModel
from pyengm.errors import CheckpointError, ConfigError
from pyengm.evaluation import evaluate, resumable
from pyengm.evaluation.resumable import Resumable, settings_of

ATTACKS = (
    *("fgsm", "pgd20", "mifgsm:steps=3", "targeted_pgd:steps=3", "fmn:steps=5", "ddn:steps=5", "cw", "deepfool"),
    *("cw_l2:steps=4,searches=2", "pgd:steps=3,samples=2", "pgd:steps=2,on=surrogate"),
)
THREAT = ThreatModel("l2", 0.4)


class Stops(torch.nn.Module):
    """A model that raises an error after a number of images; `images` counts them."""

    def __init__(self, net, limit=None):
        super().__init__()
        self.net, self.limit, self.images = net, limit, 0

    def forward(self, x):
        self.images += len(x)
        if self.limit is not None and self.images > self.limit:
            raise KeyboardInterrupt
        return self.net(x)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for name in ("accuracy", "distance"):
        monkeypatch.setattr(sys.modules[f"pyengm.evaluation.{name}"], "BATCH_SIZE", 8)
    monkeypatch.setattr(resumable, "SECONDS", 0.0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("seconds", [0.0, 1e9])  # as if killed after a write, and ended by Ctrl-C before one
def test_an_interrupted_attack_goes_on(attack, seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "SECONDS", seconds)
    options = {"threat": THREAT, "attacks": [attack], "device": CPU, "surrogate": network(seed=1), "seed": 3}
    options = options if "surrogate" in attack else {**options, "surrogate": None}
    data = data_for(network())  # five batches
    whole = Stops(network())
    expected = evaluate(whole, data, **options)
    clean = evaluate(counted := Stops(network()), data, **{**options, "attacks": []})
    of_attack = whole.images - counted.images
    assert clean["natural"] == expected["natural"]

    cut = Stops(network(), limit=counted.images + of_attack * 7 // 10)
    with pytest.raises(KeyboardInterrupt):
        evaluate(cut, data, state=tmp_path, **options)
    again = Stops(network())
    assert evaluate(again, data, state=tmp_path, **options) == expected
    assert again.images < whole.images
    finished = Stops(network())
    assert evaluate(finished, data, state=tmp_path, **options) == expected
    assert finished.images == len(data) + 1  # the natural accuracy, and one image that tells the number of classes


@pytest.mark.slow
def test_a_killed_attack_goes_on(tmp_path):
    wholes = {attack: killed_evaluation.run(attack, None) for attack in ATTACKS}
    limits = [f"{attack}={images * 3 // 4}" for attack, (_, images) in wholes.items()]
    tests = Path(killed_evaluation.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    subprocess.run([sys.executable, "-m", "helpers.killed_evaluation", tmp_path, *limits], env=environment, check=True)
    for number, (attack, (expected, images)) in enumerate(wholes.items()):
        found, again = killed_evaluation.run(attack, tmp_path / str(number))
        assert found == expected, attack
        assert again < images, attack


def test_what_decides_the_values(tmp_path):
    model, data = network(), data_for(network())
    base = {"threat": THREAT, "attacks": ["pgd:steps=2"], "device": CPU, "seed": 3, "state": tmp_path}
    other = data_for(network())
    other.labels[1] = (other.labels[1] + 1) % 10
    calls = [
        (model, data, {}),
        (network(seed=1), data, {}),
        (model, other, {}),
        (model, data.subset(torch.arange(40).flip(0)), {}),
        (model, data, {"seed": 4}),
        (model, data, {"bn": "batch_stats"}),
        (model, data, {"threat": ThreatModel("l2", 0.3)}),
        (model, data, {"threat": ThreatModel("linf", 0.4)}),
        (model, data, {"attacks": ["pgd:steps=3"]}),
        (model, data, {"attacks": ["pgd:steps=2,loss=ce"]}),
        (model, data, {"attacks": ["pgd:steps=2,samples=2"]}),
    ]
    for number, (net, images, changes) in enumerate(calls, 1):
        evaluate(net, images, **{**base, **changes})
        assert len(list(tmp_path.iterdir())) == number
    for net, images, changes in calls:
        evaluate(net, images, **{**base, **changes})
    assert len(list(tmp_path.iterdir())) == len(calls)


def test_settings_of_attacks():
    assert settings_of(PGD(0.1, 0.02, 3)) == settings_of(PGD(0.1, 0.02, 3))
    assert settings_of(PGD(0.1, 0.02, 3)) != settings_of(PGD(0.1, 0.02, 3, restarts=2))
    assert settings_of(PGD(0.1, 0.02, 3)) != settings_of(PGD(0.1, 0.02, 3, norm="l2"))


def test_files_that_are_damaged(tmp_path):
    options = {"threat": THREAT, "attacks": ["fgsm"], "device": CPU, "state": tmp_path}
    evaluate(network(), data_for(network()), **options)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged; remove it"):
        evaluate(network(), data_for(network()), **options)


def test_models_without_weights_cannot_resume(tmp_path):
    net = network()
    with pytest.raises(ConfigError, match="this one has none; leave state out"):
        evaluate(lambda x: net(x), data_for(net), threat=THREAT, attacks=["fgsm"], device=CPU, state=tmp_path)
    assert Resumable.of(None, net, data_for(net)) is None
