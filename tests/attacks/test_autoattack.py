"""AutoAttack on a batch: the results of its authors' package, and the state of the model and of torch afterwards."""

import logging
import sys
import warnings

import pyautoattack
import pytest
import torch
from helpers.autoattack import EPS, accuracy, linear, make_images, shorten

from pyengm.attacks import PGD, AutoAttack
from pyengm.attacks.autoattack import _first_squares_fit
from pyengm.errors import ConfigError, DataError
from pyengm.models import build


@pytest.mark.parametrize("norm", EPS)
def test_autoattack_is_the_package(norm):
    model, eps = linear(), EPS[norm]
    x, y = make_images(model)
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


class Noisy(torch.nn.Module):
    """A model with a little noise of torch's generator at test time."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 1e-4 * torch.randn_like(x))


@pytest.mark.parametrize("version", ["plus", "rand"])
def test_versions_of_autoattack_are_those_of_the_package(version, monkeypatch):
    ran = shorten(monkeypatch, apgd=6, fab=4, square=30)
    net, eps = linear(), EPS["linf"]
    x, y = make_images(net)
    model = Noisy(net).eval() if version == "rand" else net.eval()
    ours = AutoAttack(eps, seed=4, version=version)(model, x, y)
    used = list(ran)
    direct = pyautoattack.AutoAttack(model, norm="Linf", eps=eps, seed=4, version=version)
    if version == "plus":
        restarts = direct.fab.n_restarts, direct.apgd.n_restarts
        assert restarts == (5, 5)
    else:
        assert direct.apgd.eot_iter == 20
    theirs, _ = direct.run_standard_evaluation(x, y, batch_size=250)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert used == ran[len(used) :]
    assert len(used) == {"plus": 6, "rand": 2}[version]
    assert not ours.equal(x)
    assert accuracy(net, ours, y) < accuracy(net, x, y)


def test_rand_does_not_ask_whether_the_model_is_random(monkeypatch):
    asked = []
    monkeypatch.setattr(pyautoattack.checks, "check_randomized", lambda *_, **options: asked.append(1))
    model = linear()
    x, y = make_images(model)
    for version, members in (("rand", ["apgd-ce", "apgd-dlr"]), ("standard", ["apgd-ce", "apgd-t", "fab-t", "square"])):
        with AutoAttack(0.01, version=version).prepared_members(model, x, y) as prepared:
            assert list(prepared) == members
            assert bool(asked) == (version == "standard")


def test_queries_of_square(monkeypatch):
    seen = []
    monkeypatch.setattr(pyautoattack.square.SquareAttack, "perturb", lambda one, x, y: seen.append(one.n_queries) or x)
    model = linear()
    x, y = make_images(model)
    AutoAttack(0.01, attacks="square", queries=77)(model, x, y)
    AutoAttack(0.01, attacks="square")(model, x, y)
    assert seen == [77, 5000]


def test_four_classes_are_enough():
    model = linear(classes=4)
    x = torch.rand(3, 1, 8, 8)
    y = (model.eval()(x).argmax(dim=1) + 1) % 4  # all misclassified: nothing to do
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AutoAttack(0.1)(model, x, y).equal(x)


def test_usual_images_have_every_member():
    assert all(_first_squares_fit(side, side) for side in (8, 28, 32, 64, 96, 224))


def test_fewer_classes_than_targets():
    model = linear(classes=5)
    x = torch.rand(2, 1, 8, 8)
    y = model.eval()(x).argmax(dim=1)
    x_adv = AutoAttack(0.5)(model, x, y)
    assert accuracy(model, x_adv, y) == 0


def test_running_statistics_stay():
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm_layer="bn").train()
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
        (torch.rand(2, 64), torch.zeros(2).long(), ConfigError, r"\(n, c, h, w\), got \(2, 64\)"),
        (torch.rand(2, 1, 8, 8) + 1, torch.zeros(2).long(), DataError, r"\[0, 1\]"),
        (torch.rand(2, 1, 8, 8), torch.zeros(2), DataError, "int64"),
        (torch.rand(2, 1, 8, 8), torch.zeros(3).long(), DataError, "labels of shape"),
        (torch.rand(0, 1, 8, 8), torch.zeros(0).long(), DataError, "empty"),
    ],
)
def test_bad_inputs(x, y, error, message):
    with pytest.raises(error, match=message):
        AutoAttack(0.1)(linear(), x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1}, "eps is -1"),
        ({"eps": 0.1, "norm": "l1"}, "norm is 'l1'"),
        ({"eps": 0.1, "batch_size": 0}, "batch_size is 0"),
        (
            {"eps": 0.1, "attacks": ["apgd"]},
            "no member 'apgd'; its members: apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t",
        ),
        ({"eps": 0.1, "attacks": ()}, "at least one member"),
        ({"eps": 0.1, "version": "fast"}, "version of AutoAttack is 'fast'; known: standard, plus, rand"),
        ({"eps": 0.1, "queries": 0}, "queries is 0; expected at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        AutoAttack(**options)
