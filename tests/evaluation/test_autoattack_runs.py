"""AutoAttack on a data set: verdicts, members that do not apply, and runs that are interrupted and resumed."""

import json
import warnings

import pyautoattack
import pytest
import torch
from helpers.autoattack import EPS, accuracy, image_data, linear, shorten

from pyengm.attacks import AutoAttack, ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.data import ImageDataset
from pyengm.errors import CheckpointError, ConfigError, NonFiniteError
from pyengm.evaluation import evaluate, run_autoattack
from pyengm.models import build

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    return shorten(monkeypatch, apgd=10, fab=5, square=40)


def test_evaluate_gives_the_accuracy_of_the_package():
    model = linear().eval()
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    labels = model(images / 255).argmax(dim=1)
    data = ImageDataset(images, labels, tuple("0123456789"), "made", "test")
    threat = ThreatModel("linf", EPS["linf"])
    ours = evaluate(
        model, data, threat=[threat], attacks=["autoattack"], device=torch.device("cpu"), autoattack_examples=12
    )

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
    verdicts = run_autoattack(attack, model, data, device=CPU, progress=lambda *values: passes.append(values))
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
        alone = run_autoattack(attack, model, data.subset(rows), device=CPU)
        assert alone.stages_survived.equal(verdicts.stages_survived[rows])
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
    together = run_autoattack(AutoAttack(eps, norm=norm), model, data, device=CPU).robust
    for name in MEMBERS:
        alone = run_autoattack(AutoAttack(eps, norm=norm, attacks=[name]), model, data, device=CPU)
        assert alone.members == (name,)
        assert together.sum() <= alone.robust.sum() < 18  # 18 are right as they are
    assert AutoAttack(eps, norm=norm, attacks=name).attacks == (name,)  # one name will do


def test_members_run_in_the_order_given_on_the_images_that_survive(quick):
    model = linear()
    data = image_data(model)
    verdicts = run_autoattack(AutoAttack(EPS["linf"], attacks=("fab-t", "apgd-ce", "fab-t")), model, data, device=CPU)
    surviving = [round(30 * share) for share in verdicts.accuracies().values()]
    assert verdicts.members == ("fab-t", "apgd-ce")
    assert quick == [("fab-t", surviving[0]), ("apgd-ce", surviving[1])]
    assert surviving[1] < surviving[0] == 27


# What cannot run


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", EPS)
def test_few_classes_leave_the_targeted_dlr_loss_out(norm, classes, quick):
    model = linear(classes)
    data = image_data(model, classes=classes)
    attack = AutoAttack(EPS[norm] / 4, norm=norm, seed=1)
    with pytest.warns(UserWarning, match=f"runs without apgd-t: .* needs at least 4 classes, there are {classes}"):
        verdicts = run_autoattack(attack, model, data, device=CPU)
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
            assert run_autoattack(attack, model, data, device=CPU).members == ("apgd-ce", "square")
        return
    with pytest.warns(UserWarning, match=f"without square: .*L2 do not fit images of {height}x{width}"):
        assert run_autoattack(attack, model, data, device=CPU).members == ("apgd-ce",)
    with pytest.raises(ConfigError, match=f"square cannot run: .*{height}x{width}"):
        run_autoattack(AutoAttack(0.1, norm=norm, attacks=["square"]), model, data, device=CPU)
    direct = pyautoattack.AutoAttack(model, norm="L2", eps=1e-4, seed=0)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        direct.square.perturb(data.images[1:] / 255, data.labels[1:])


# Resuming


class Stop(Exception):
    pass


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_an_interrupted_run_resumes_to_the_same_verdicts(norm, stop, quick, tmp_path):
    model = linear()
    data = image_data(model)
    attack = AutoAttack(EPS[norm], norm=norm, batch_size=12, seed=5)
    whole = run_autoattack(attack, model, data, device=CPU, state=tmp_path / "whole")
    calls = quick.copy()
    quick.clear()

    def interrupt(done, total, robust):
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        run_autoattack(attack, model, data, device=CPU, state=tmp_path / "cut", progress=interrupt)
    progress = []
    again = run_autoattack(
        attack, model, data, device=CPU, state=tmp_path / "cut", progress=lambda *n: progress.append(n)
    )
    assert again.stages_survived.equal(whole.stages_survived)
    assert quick == calls  # no pass is done twice
    assert [done for done, _, _ in progress] == list(range(stop + 1, 13))
    (first,), (second,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    quick.clear()
    assert run_autoattack(attack, model, data, device=CPU, state=tmp_path / "cut").stages_survived.equal(
        whole.stages_survived
    )
    assert quick == []


def test_what_the_verdicts_depend_on_has_files_of_its_own(quick, tmp_path):
    model = linear()
    data = image_data(model, n=12)
    labels = ImageDataset(data.images, data.labels.roll(1), data.classes, "made", "test")
    base = {"eps": 0.03, "norm": "linf", "seed": 0, "batch_size": 250, "attacks": ("apgd-ce",)}
    changes = [{}, {"eps": 0.04}, {"norm": "l2"}, {"seed": 1}, {"batch_size": 6}, {"attacks": ("apgd-ce", "fab-t")}]
    contents = {}
    for change in changes:
        run_autoattack(AutoAttack(**base | change), model, data, device=CPU, state=tmp_path)
    run_autoattack(AutoAttack(**base), model, image_data(model, n=12, seed=9), device=CPU, state=tmp_path)
    run_autoattack(AutoAttack(**base), model, labels, device=CPU, state=tmp_path)
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    run_autoattack(AutoAttack(**base), model, data, device=CPU, state=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(changes) + 3
    contents = {path: json.loads(path.read_text()) for path in files}
    assert sum(saved["norm"] == "l2" and path.name.startswith("l2-") for path, saved in contents.items()) == 1
    assert all(len(saved["stages_survived"]) == 12 for saved in contents.values())
    for name in ("norm", "eps", "members", "batch_size", "seed", "model", "images"):
        assert len({str(saved[name]) for saved in contents.values()}) > 1


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"passes_done": 1}', "cut", "seed"])
def test_a_damaged_state_is_an_error_and_stays(damage, quick, tmp_path):
    model = linear()
    data = image_data(model, n=6)
    attack = AutoAttack(0.01, attacks=["apgd-ce"])
    run_autoattack(attack, model, data, device=CPU, state=tmp_path)
    (path,) = tmp_path.iterdir()
    saved = json.loads(path.read_text())
    changed = {"cut": {**saved, "stages_survived": [1]}, "seed": {**saved, "seed": 9}}
    text = json.dumps(changed[damage]) if damage in changed else damage
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"linf-.*json is damaged; remove it"):
        run_autoattack(attack, model, data, device=CPU, state=tmp_path)
    assert path.read_text() == text


def test_a_model_that_is_not_finite():
    model = linear()
    data = image_data(model, n=4)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(NonFiniteError):
        run_autoattack(AutoAttack(0.1), model, data, device=CPU)
