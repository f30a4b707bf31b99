"""Eight radii in one evaluation against eight evaluations of one radius: pytest bench/bench_radii.py.

A small network, 64 images of digits and PGD-20; both sides have the same results. The natural accuracy is measured once
instead of eight times, so the ratio should be at least one.
"""

import pytest
import torch

from pyengm.attacks import ThreatModel
from pyengm.data import load
from pyengm.evaluation import evaluate
from pyengm.models import build

RADII = range(1, 9)
ROUNDS = 7


@pytest.mark.parametrize("attack", ["pgd:steps=20", "fmn:steps=20"])
def test_eight_radii(attack, compare):
    torch.manual_seed(0)
    model = build("cnn4", num_classes=10, in_channels=1, image_size=8, norm_layer="bn", width=16).eval()
    data = load("digits", "test").subset(range(64))
    options = {"threat": ThreatModel("linf", 8 / 255), "device": torch.device("cpu")}

    def one_by_one():
        parts = [evaluate(model, data, attacks=[f"{attack},eps={k}/255"], **options) for k in RADII]
        return {name: value for part in parts for name, value in part.items()}

    def at_once():
        return evaluate(model, data, attacks=[f"{attack},eps=1/255..8/255"], **options)

    assert at_once() == one_by_one()
    compare(at_once, {"eight evaluations": one_by_one}, rounds=ROUNDS, warm_up=1)
