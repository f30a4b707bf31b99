"""The names of results in words."""

import pytest

from pyengm.attacks import ThreatModel
from pyengm.evaluation.result_key import read_key

LINF, L2 = ThreatModel("linf", 8 / 255), ThreatModel("l2", 0.5)


@pytest.mark.parametrize(
    ("key", "title", "threat"),
    [
        ("natural", "natural", "none"),
        ("pgd20", "PGD-20", str(LINF)),
        ("pgd20_l2", "PGD-20", str(L2)),
        ("autoattack_l2", "AutoAttack", str(L2)),
        ("deepfool", "DeepFool", "mean distance in L2"),
        ("pgd20_on_autoattack_examples_l2", "PGD-20, AutoAttack's images", str(L2)),
        ("transfer_pgd20", "transfer PGD-20", str(LINF)),
        ("fgsm:eps=4/255", "FGSM", "L-infinity, eps = 4/255"),
        ("fgsm:norm=l2,eps=0.25", "FGSM", "L2, eps = 0.25"),
        ("fgsm:norm=l2", "FGSM", str(L2)),
        ("cw:on=surrogate", "C&W, by transfer", str(LINF)),
        ("pgd:steps=3,restarts=2,eps=1/255", "PGD (steps=3, restarts=2)", "L-infinity, eps = 1/255"),
        ("tomorrow", "tomorrow", str(LINF)),
        ("tomorrow_l2", "tomorrow", str(L2)),
        ("tomorrow:eps=many", "tomorrow:eps=many", ""),
    ],
)
def test_keys(key, title, threat):
    found = read_key(key, (LINF, L2))
    assert (found.title, found.threat_text()) == (title, threat)
    assert found.own_eps == (("eps=" in key) and "many" not in key)


def test_which_images():
    on_few = [
        key for key in ("natural", "pgd20", "square_l2", "autoattack", "fgsm") if read_key(key, (LINF, L2)).on_few
    ]
    assert on_few == ["square_l2", "autoattack"]
