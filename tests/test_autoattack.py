"""AutoAttack: the numbers of its authors' package, and nothing left changed behind it."""

import logging
import sys

import pyautoattack
import pytest
import torch
from torch import nn

from pyengm.attacks import PGD, AutoAttack, Threat
from pyengm.data import ImageData
from pyengm.errors import ConfigError, DataError
from pyengm.evaluation import evaluate
from pyengm.models import build

EPS = {"linf": 0.03, "l2": 0.2}


def linear(classes=10, side=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(side * side, classes))


def pictures(model, n=16, side=8):
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    y = model.eval()(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10  # one that is misclassified from the start
    return x, y


def accuracy(model, x, y):
    return (model.eval()(x).argmax(dim=1) == y).double().mean().item()


@pytest.mark.parametrize("norm", EPS)
def test_autoattack_is_the_package(norm):
    model, eps = linear(), EPS[norm]
    x, y = pictures(model)
    before = x.clone()
    model.train()
    model[2].bias.requires_grad_(False)
    torch.manual_seed(9)
    generator, tracer, level = torch.get_rng_state(), sys.gettrace(), logging.getLogger("auto-attack").level
    ours = AutoAttack(eps, norm=norm, seed=4)(model, x, y)
    assert torch.get_rng_state().equal(generator)
    assert sys.gettrace() is tracer
    assert logging.getLogger("auto-attack").level == level
    assert model[1].training
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert x.equal(before)

    direct = pyautoattack.AutoAttack(model.eval(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=4)
    theirs, _ = direct.run_standard_evaluation(x, y, batch_size=250)
    assert ours.equal(theirs)
    assert not ours.requires_grad
    robust = accuracy(model, ours, y)
    assert 0 < robust < accuracy(model, x, y)  # otherwise the comparison says little
    assert ours[0].equal(x[0])
    assert robust <= accuracy(model, PGD(eps, eps / 10, 20, norm=norm, loss="margin")(model, x, y), y)
    size = (ours - x).flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)
    assert size.max() <= eps + 1e-6
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_evaluate_gives_the_accuracy_of_the_package():
    model = linear().eval()
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    labels = model(images / 255).argmax(dim=1)
    data = ImageData(images, labels, tuple("0123456789"), "made", "test")
    threat = Threat("linf", EPS["linf"])
    ours = evaluate(model, data, [threat], ["autoattack"], device=torch.device("cpu"), autoattack_pictures=12)

    direct = pyautoattack.AutoAttack(model, norm="Linf", eps=threat.eps, seed=0)
    x_adv, _ = direct.run_standard_evaluation(images[::2] / 255, labels[::2], batch_size=250)
    assert ours["autoattack"] == accuracy(model, x_adv, labels[::2])
    assert 0 < ours["autoattack"] < 1


def test_four_classes_are_enough_and_three_are_not():
    model = linear(classes=4)
    x = torch.rand(3, 1, 8, 8)
    y = (model.eval()(x).argmax(dim=1) + 1) % 4  # all misclassified: nothing to do
    assert AutoAttack(0.1)(model, x, y).equal(x)
    with pytest.raises(ConfigError, match="at least 4 classes, the model has 3"):
        AutoAttack(0.1)(linear(classes=3), x, y % 3)


def test_fewer_classes_than_targets():
    model = linear(classes=5)
    x = torch.rand(2, 1, 8, 8)
    y = model.eval()(x).argmax(dim=1)
    x_adv = AutoAttack(0.5)(model, x, y)
    assert accuracy(model, x_adv, y) == 0


def test_running_statistics_stay():
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm="bn").train()
    x = torch.rand(4, 1, 8, 8)
    y = model.eval()(x).argmax(dim=1)
    before = {name: b.clone() for name, b in model.named_buffers()}
    AutoAttack(1.0)(model.train(), x, y)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(before[name].equal(b) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.rand(2, 1, 8, 6), torch.zeros(2).long(), ConfigError, r"square pictures.*\(2, 1, 8, 6\)"),
        (torch.rand(2, 64), torch.zeros(2).long(), ConfigError, "square pictures"),
        (torch.rand(2, 1, 8, 8) + 1, torch.zeros(2).long(), DataError, r"\[0, 1\]"),
        (torch.rand(2, 1, 8, 8), torch.zeros(2), DataError, "int64"),
        (torch.rand(2, 1, 8, 8), torch.zeros(3).long(), DataError, "labels of shape"),
        (torch.rand(0, 1, 8, 8), torch.zeros(0).long(), DataError, "empty"),
    ],
)
def test_bad_inputs(x, y, error, message):
    with pytest.raises(error, match=message):
        AutoAttack(0.1)(linear(), x, y)


@pytest.mark.parametrize("options", [{"eps": -1}, {"eps": 0.1, "norm": "l1"}, {"eps": 0.1, "batch_size": 0}])
def test_bad_options(options):
    with pytest.raises(ConfigError):
        AutoAttack(**options)
