"""Targeted PGD: its labels, and torchattacks' results."""

import pytest
import torch
from helpers.attacked import EPS, batch, both_norms, key_for, network

from pyengm.attacks import PGD, TargetedPGD
from pyengm.errors import ConfigError, DataError


@pytest.fixture
def torchattacks():
    return pytest.importorskip("torchattacks")


@both_norms
@pytest.mark.parametrize("target", ["least_likely", "given"])
def test_targeted_pgd_is_that_of_torchattacks(torchattacks, norm, target):
    model, (x, y), eps = network(dtype=torch.float64), batch(dtype=torch.float64), EPS[norm]
    theirs = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    theirs = theirs(model, eps=eps, alpha=eps / 4, steps=6, random_start=False)
    if target == "given":
        theirs.set_mode_targeted_by_label(quiet=True)
        given = (y + 3) % 10
        expected = theirs(x, given)
        ours = PGD(eps, eps / 4, 6, norm=norm, loss="targeted")(model, x, given, start=x)
    else:
        theirs.set_mode_targeted_least_likely(quiet=True)
        expected = theirs(x, y)
        ours = TargetedPGD(eps, eps / 4, 6, norm=norm)(model, x, y, start=x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert not ours.equal(x)


def test_labels_that_are_aimed_at():
    model, (x, y) = network(), batch(400)
    key = key_for(len(x))
    least = TargetedPGD(0.1, 0.02, 2).targets(model, x, y, key)
    logits = model(x).detach()
    for row, own, found in zip(logits, y.tolist(), least.tolist(), strict=True):
        assert found == min((value, k) for k, value in enumerate(row.tolist()) if k != own)[1]
    uniform = TargetedPGD(0.1, 0.02, 2, target="random").targets(model, x, y, key)
    assert (uniform != y).all()
    steps = ((uniform - y) % 10).bincount(minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 20  # 44 on average
    assert uniform.equal(TargetedPGD(0.1, 0.02, 2, target="random").targets(model, x, y, key))
    assert TargetedPGD(0.1, 0.02, 2, target=7).targets(model, x, y, key).unique().tolist() == [7]


def test_the_model_is_led_to_the_target():
    model, (x, y) = network(), batch(30)
    x_adv = TargetedPGD(0.5, 0.05, 40, target=7)(model, x, y, key=key_for(30))
    before, after = ((model(images).argmax(dim=1) == 7)[y != 7].double().mean() for images in (x, x_adv))
    assert before < 0.1
    assert after > 0.6
    assert x_adv[y == 7].equal(x[y == 7])


def test_options_out_of_range():
    for target in ("nearest", -1):
        with pytest.raises(ConfigError, match=r"target is .*; expected"):
            TargetedPGD(0.1, 0.02, 2, target=target)
    with pytest.raises(DataError, match="target is 10, and the model has classes from 0 to 9"):
        TargetedPGD(0.1, 0.02, 2, target=10)(network(), *batch())
