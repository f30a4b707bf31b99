"""The share of an evaluation that is done."""

import pytest

from pyengm.attacks import ThreatModel
from pyengm.evaluation.work import CHECKS, MEMBERS, STEP, Part, Work, parts_of

LINF = ThreatModel("linf", 0.1)


def test_shares_of_parts_and_jobs():
    work = Work({"a": [Part(10), Part(30, (1.0, 2.0))], "b": [Part(40)]})
    assert work.share() == 0
    work.begin("a")
    assert work.share() == 0
    work.begin("a")
    assert work.share() == pytest.approx(10 / 80)
    work.advance("a", 1, 4)  # two batches of two passes
    assert work.share() == pytest.approx((10 + 5) / 80)
    work.advance("a", 2, 4)
    assert work.share() == pytest.approx((10 + 15) / 80)
    work.begin("b")
    work.advance("b", 1, 1)
    work.advance("a", 4, 4)
    assert work.share() == 1


def test_passes_that_are_not_those_expected():
    assert Part(5, (1.0, 2.0, 3.0, 4.0)).share(1, 3) == pytest.approx(1 / 3)


def test_parts_of_an_evaluation():
    attacks = ["pgd20", "autoattack", "deepfool"]
    natural, pgd, autoattack, deepfool, checks = parts_of(attacks, LINF, 100, 10, transfer=False)
    assert (natural.cost, pgd.cost) == (100, 100 * 20 * STEP)
    assert autoattack.cost == 10 * sum(MEMBERS.values())
    assert deepfool.cost > 0
    assert checks.cost == 10 * CHECKS
    assert len(parts_of(["pgd20"], LINF, 100, 10, transfer=True)) == 4
