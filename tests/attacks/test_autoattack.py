"""AutoAttack: the numbers of its authors' package, its members, runs that go on, and nothing left changed behind it."""

import json
import logging
import sys
import warnings

import pyautoattack
import pytest
import torch
from torch import nn

from pyengm.attacks import PGD, AutoAttack, ThreatModel
from pyengm.attacks.autoattack import MEMBERS, _first_squares_fit
from pyengm.data import ImageDataset
from pyengm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from pyengm.evaluation import evaluate
from pyengm.models import build

EPS = {"linf": 0.03, "l2": 0.2}
CPU = torch.device("cpu")


def linear(classes=10, height=8, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(height * width, classes))


def make_images(model, n=16, side=8):
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    y = model.eval()(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10  # one that is misclassified from the start
    return x, y


def image_data(model, n=30, classes=10, height=8, width=8, seed=2):
    """Images with the labels that the model gives, one in ten made wrong."""
    images = torch.randint(0, 256, (n, 1, height, width), generator=torch.Generator().manual_seed(seed))
    labels = model.eval()(images / 255).argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % classes
    return ImageDataset(images.to(torch.uint8), labels, tuple(map(str, range(classes))), "made", "test")


def accuracy(model, x, y):
    return (model.eval()(x).argmax(dim=1) == y).double().mean().item()


def shorten(monkeypatch, apgd, fab, square):
    """Fewer steps and queries. The list that it returns names the members that run, and on how many images."""
    init, ran = pyautoattack.AutoAttack.__init__, []

    def short(package, *args, **options):
        init(package, *args, **options)
        package.apgd.n_iter = package.apgd_targeted.n_iter = apgd
        package.fab.n_iter, package.square.n_queries = fab, square
        attacks = (package.apgd, package.apgd_targeted, package.fab, package.square)
        for name, attack in zip(MEMBERS, attacks, strict=True):
            attack.perturb = lambda x, y, name=name, perturb=attack.perturb: ran.append((name, len(x))) or perturb(x, y)

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
    return ran


@pytest.fixture
def quick(monkeypatch):
    return shorten(monkeypatch, apgd=10, fab=5, square=40)


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


def test_evaluate_gives_the_accuracy_of_the_package():
    model = linear().eval()
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    labels = model(images / 255).argmax(dim=1)
    data = ImageDataset(images, labels, tuple("0123456789"), "made", "test")
    threat = ThreatModel("linf", EPS["linf"])
    ours = evaluate(model, data, [threat], ["autoattack"], device=torch.device("cpu"), autoattack_examples=12)

    direct = pyautoattack.AutoAttack(model, norm="Linf", eps=threat.eps, seed=0)
    x_adv, _ = direct.run_standard_evaluation(images[::2] / 255, labels[::2], batch_size=250)
    assert ours["autoattack"] == accuracy(model, x_adv, labels[::2])
    assert 0 < ours["autoattack"] < 1


@pytest.mark.parametrize("norm", EPS)
def test_a_run_gives_the_verdicts_of_the_attack(norm, quick):
    model = linear()
    data = image_data(model)
    x, y = data.images / 255, data.labels
    attack = AutoAttack(EPS[norm], norm=norm, batch_size=8, seed=3)
    passes = []
    verdicts = attack.run(model, data, device=CPU, progress=lambda *numbers: passes.append(numbers))
    right = model(attack(model, x, y)).argmax(dim=1) == y
    assert verdicts.robust.equal(right)
    assert 0 < right.sum() < 27
    assert verdicts.members == MEMBERS
    shares = verdicts.accuracies()
    assert list(shares) == ["natural", *MEMBERS]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares["natural"] == 0.9
    assert shares["square"] == right.double().mean().item()
    # Each batch is what it would be alone.
    for rows in torch.arange(30).split(8):
        alone = attack.run(model, data.subset(rows), device=CPU)
        assert alone.survived.equal(verdicts.survived[rows])
    assert [done for done, _, _ in passes] == list(range(1, 17))
    assert {total for _, total, _ in passes} == {16}
    assert passes[-1][2] == shares["square"]
    assert passes[3][2] == verdicts.robust[:8].double().mean().item()


@pytest.mark.parametrize("norm", EPS)
def test_no_member_leaves_less_than_all_of_them(norm, monkeypatch):
    # APGD and FAB at full strength: with few steps one may do better alone, as its random starts are others then.
    shorten(monkeypatch, apgd=100, fab=100, square=400)
    torch.manual_seed(0)
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm_layer="gn").eval()
    data = image_data(model, n=20)
    eps = {"linf": 0.04, "l2": 0.3}[norm]
    together = AutoAttack(eps, norm=norm).run(model, data, device=CPU).robust
    for name in MEMBERS:
        alone = AutoAttack(eps, norm=norm, attacks=[name]).run(model, data, device=CPU)
        assert alone.members == (name,)
        assert together.sum() <= alone.robust.sum() < 18  # 18 are right as they are
    assert AutoAttack(eps, norm=norm, attacks=name).attacks == (name,)  # one name will do


def test_members_run_in_the_order_given_on_what_still_stands(quick):
    model = linear()
    data = image_data(model)
    verdicts = AutoAttack(EPS["linf"], attacks=("fab-t", "apgd-ce", "fab-t")).run(model, data, device=CPU)
    standing = [round(30 * share) for share in verdicts.accuracies().values()]
    assert verdicts.members == ("fab-t", "apgd-ce")
    assert quick == [("fab-t", standing[0]), ("apgd-ce", standing[1])]
    assert standing[1] < standing[0] == 27


# What cannot run


def test_four_classes_are_enough():
    model = linear(classes=4)
    x = torch.rand(3, 1, 8, 8)
    y = (model.eval()(x).argmax(dim=1) + 1) % 4  # all misclassified: nothing to do
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AutoAttack(0.1)(model, x, y).equal(x)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", EPS)
def test_few_classes_leave_the_targeted_dlr_loss_out(norm, classes, quick):
    model = linear(classes)
    data = image_data(model, classes=classes)
    attack = AutoAttack(EPS[norm] / 4, norm=norm, seed=1)
    with pytest.warns(UserWarning, match=f"runs without apgd-t: .* needs at least 4 classes, there are {classes}"):
        verdicts = attack.run(model, data, device=CPU)
    assert verdicts.members == ("apgd-ce", "fab-t", "square")
    assert [name for name, _ in quick] == list(verdicts.members)
    assert 0 < verdicts.robust.sum() < 27
    # The package's own run of these three.
    x, y = data.images / 255, data.labels
    direct = pyautoattack.AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm] / 4, seed=1)
    direct.attacks_to_run, direct.fab.n_target_classes = list(verdicts.members), classes - 1
    theirs, _ = direct.run_standard_evaluation(x, y, batch_size=250)
    assert verdicts.robust.equal(model(theirs).argmax(dim=1) == y)
    with pytest.raises(ConfigError, match=f"apgd-t cannot run: .*at least 4 classes, there are {classes}"):
        AutoAttack(0.1, attacks=["apgd-t"])(model, x, y)


@pytest.mark.parametrize(
    ("norm", "height", "width", "fits"),
    [
        ("linf", 8, 6, True),
        ("linf", 3, 17, True),
        ("l2", 8, 6, True),
        ("l2", 32, 24, False),
        ("l2", 24, 24, False),
        ("l2", 4, 4, False),
        ("l2", 32, 28, True),
        ("l2", 10, 14, True),
    ],
)
def test_square_runs_where_the_package_can_run_it(norm, height, width, fits, quick):
    model = linear(5, height, width)
    data = image_data(model, 6, 5, height, width)
    attack = AutoAttack(1e-4, norm=norm, attacks=("apgd-ce", "square"))
    if fits:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert attack.run(model, data, device=CPU).members == ("apgd-ce", "square")
        return
    with pytest.warns(UserWarning, match=f"without square: .*L2 do not fit images of {height}x{width}"):
        assert attack.run(model, data, device=CPU).members == ("apgd-ce",)
    with pytest.raises(ConfigError, match=f"square cannot run: .*{height}x{width}"):
        AutoAttack(0.1, norm=norm, attacks=["square"]).run(model, data, device=CPU)
    direct = pyautoattack.AutoAttack(model, norm="L2", eps=1e-4, seed=0)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        direct.square.perturb(data.images[1:] / 255, data.labels[1:])


def test_usual_images_have_every_member():
    assert all(_first_squares_fit(side, side) for side in (8, 28, 32, 64, 96, 224))


# Going on


class Stop(Exception):
    pass


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_an_interrupted_run_goes_on_to_the_same_verdicts(norm, stop, quick, tmp_path):
    model = linear()
    data = image_data(model)
    attack = AutoAttack(EPS[norm], norm=norm, batch_size=12, seed=5)
    whole = attack.run(model, data, device=CPU, state=tmp_path / "whole")
    calls = quick.copy()
    quick.clear()

    def interrupt(done, total, robust):
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        attack.run(model, data, device=CPU, state=tmp_path / "cut", progress=interrupt)
    seen = []
    again = attack.run(model, data, device=CPU, state=tmp_path / "cut", progress=lambda *n: seen.append(n))
    assert again.survived.equal(whole.survived)
    assert quick == calls  # no pass is done twice
    assert [done for done, _, _ in seen] == list(range(stop + 1, 13))
    (first,), (second,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    quick.clear()
    assert attack.run(model, data, device=CPU, state=tmp_path / "cut").survived.equal(whole.survived)
    assert quick == []


def test_what_the_verdicts_depend_on_has_files_of_its_own(quick, tmp_path):
    model = linear()
    data = image_data(model, n=12)
    labels = ImageDataset(data.images, data.labels.roll(1), data.classes, "made", "test")
    base = {"eps": 0.03, "norm": "linf", "seed": 0, "batch_size": 250, "attacks": ("apgd-ce",)}
    changes = [{}, {"eps": 0.04}, {"norm": "l2"}, {"seed": 1}, {"batch_size": 6}, {"attacks": ("apgd-ce", "fab-t")}]
    contents = {}
    for change in changes:
        AutoAttack(**base | change).run(model, data, device=CPU, state=tmp_path)
    AutoAttack(**base).run(model, image_data(model, n=12, seed=9), device=CPU, state=tmp_path)
    AutoAttack(**base).run(model, labels, device=CPU, state=tmp_path)
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    AutoAttack(**base).run(model, data, device=CPU, state=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(changes) + 3
    contents = {path: json.loads(path.read_text()) for path in files}
    assert sum(saved["norm"] == "l2" and path.name.startswith("l2-") for path, saved in contents.items()) == 1
    assert all(len(saved["survived"]) == 12 for saved in contents.values())
    for name in ("norm", "eps", "members", "batch_size", "seed", "model", "images"):
        assert len({str(saved[name]) for saved in contents.values()}) > 1


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"passes": 1}', "cut", "seed"])
def test_a_damaged_state_is_an_error_and_stays(damage, quick, tmp_path):
    model = linear()
    data = image_data(model, n=6)
    attack = AutoAttack(0.01, attacks=["apgd-ce"])
    attack.run(model, data, device=CPU, state=tmp_path)
    (path,) = tmp_path.iterdir()
    saved = json.loads(path.read_text())
    changed = {"cut": {**saved, "survived": [1]}, "seed": {**saved, "seed": 9}}
    text = json.dumps(changed[damage]) if damage in changed else damage
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"linf-.*json is damaged; remove it"):
        attack.run(model, data, device=CPU, state=tmp_path)
    assert path.read_text() == text


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
        ({"eps": 0.1, "attacks": ["apgd"]}, "no member 'apgd'; its members: apgd-ce, apgd-t, fab-t, square"),
        ({"eps": 0.1, "attacks": ()}, "at least one member"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        AutoAttack(**options)


def test_a_model_that_is_not_finite():
    model = linear()
    data = image_data(model, n=4)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(NonFiniteError):
        AutoAttack(0.1).run(model, data, device=CPU)
