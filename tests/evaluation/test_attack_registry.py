"""The records of attacks: what they construct, their order, and attacks that do not apply to the data."""

import warnings

import pytest
from helpers.evaluation import CPU, L2, LINF, OPTIONS, make_images, network

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, DeepFool
from pyengm.attacks.autoattack import MEMBERS
from pyengm.errors import ConfigError
from pyengm.evaluation import ATTACKS, ATTACKS_HELP, check_attacks, create_attack, evaluate, final_attacks
from pyengm.models import build


def test_attacks_by_name():
    pgd20 = create_attack("pgd20", LINF)
    assert (pgd20.steps, pgd20.step_size, pgd20.threat) == (20, pytest.approx(0.01), LINF)
    for name, steps, step in (("pgd10", 10, 0.6 / 4), ("pgd50", 50, 0.6 / 20)):
        attack = create_attack(name, L2)
        assert (attack.steps, attack.step_size, attack.threat) == (steps, pytest.approx(step), L2)
        assert attack.loss is pgd20.loss is PGD(0, 0, 1, loss="margin").loss
    assert isinstance(create_attack("fgsm", L2), FGSM)
    assert isinstance(create_attack("cw", L2), CW)
    for name, members in (("apgd_ce", ("apgd-ce",)), ("fab_t", ("fab-t",)), ("autoattack", MEMBERS)):
        attack = create_attack(name, L2, seed=7)
        assert isinstance(attack, AutoAttack)
        assert (attack.threat, attack.attacks, attack.seed) == (L2, members, 7)
    assert isinstance(create_attack("deepfool", L2), DeepFool)


def test_unknown_attacks_are_errors_that_list_the_known_ones():
    known = "known: fgsm, pgd10, pgd20, pgd50, cw, apgd_ce, apgd_t, fab_t, square, autoattack, deepfool"
    for call in (
        lambda: create_attack("pgd7", LINF),
        lambda: final_attacks(["pgd7"]),
        lambda: check_attacks(["pgd7"], make_images(), [LINF]),
        lambda: evaluate(network(), make_images(), threat=[LINF], attacks=["pgd7"], device=CPU),
    ):
        with pytest.raises(ConfigError, match=f"'pgd7'; {known}"):
            call()


def test_attacks_are_ordered_from_weak_to_strong():
    assert final_attacks([]) == ["pgd20", "autoattack"]
    assert final_attacks(["cw", "pgd50", "fgsm", "pgd20", "cw"]) == ["fgsm", "pgd20", "pgd50", "cw", "autoattack"]
    assert final_attacks(["deepfool", "square", "apgd_t"]) == ["pgd20", "apgd_t", "square", "autoattack", "deepfool"]


def sized(data):
    return OPTIONS | {"num_classes": data.num_classes, "image_size": data.image_size}


def test_attacks_that_cannot_run_on_the_data():
    few, odd = make_images(classes=3), make_images(side=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_attacks(["autoattack", "apgd_t", "square"], make_images(), [LINF, L2])
        check_attacks(["autoattack", "square"], odd, [LINF])
    with pytest.warns(UserWarning, match=r"L2, eps = 0\.6\) runs without square: .*12x12"):
        check_attacks(["pgd20", "autoattack"], odd, [LINF, L2])
    with pytest.warns(UserWarning, match="without apgd-t"):
        check_attacks(["pgd20", "autoattack"], few, [LINF])
    for names, data in ((["apgd_t"], few), (["fab_t", "square"], odd)):
        with pytest.raises(ConfigError, match=r"(apgd-t|square) cannot run"):
            check_attacks(names, data, [LINF, L2])
        with pytest.raises(ConfigError, match=r"(apgd-t|square) cannot run"):
            evaluate(build(**sized(data)), data, threat=[LINF, L2], attacks=names, device=CPU)


def test_the_help_lists_every_attack():
    assert all(f"{name} ({info.title})" in ATTACKS_HELP for name, info in ATTACKS.items() if not info.always)
    assert "besides PGD-20 and AutoAttack: fgsm (FGSM), pgd10" in ATTACKS_HELP
