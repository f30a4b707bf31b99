"""Evaluation of one model: names and order of its results."""

import pytest
import torch
from helpers.evaluation import CPU, L2, LINF, OPTIONS, data_for, make_images, network

from pyengm.attacks import AutoAttack, ThreatModel, Transfer
from pyengm.errors import ConfigError
from pyengm.evaluation import (
    accuracy,
    create_attack,
    evaluate,
    robust_overfitting,
    robustness_distance,
    run_autoattack,
)
from pyengm.evaluation.attack_registry import SAME_EXAMPLES
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import build

TRANSFERS = ("transfer_pgd20", "transfer_pgd20_l2")


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(10, None, list(range(10))), (10, 20, list(range(10))), (10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (7, 1, [0])],
)
def test_evenly_spread(size, count, expected):
    assert evenly_spread(size, count).tolist() == expected


def test_robust_overfitting():
    assert robust_overfitting(0.5, 0.4) == pytest.approx(20)
    assert robust_overfitting(0.5, 0.5) == 0
    assert robust_overfitting(0.0, 0.0) == 0
    assert robust_overfitting(0.4, 0.5) == pytest.approx(-25)


def test_evaluate_names_and_orders_its_results():
    model = network()
    data, titles = data_for(model), []
    attacks = ["fgsm", "pgd20", "pgd50"]
    results = evaluate(model, data, threat=[LINF, L2], attacks=attacks, device=CPU, on_attack=titles.append)
    assert list(results) == ["natural", *attacks, *(f"{name}_l2" for name in attacks)]
    assert results["natural"] == 0.75
    for suffix in ("", "_l2"):
        assert 0.75 >= results["fgsm" + suffix] > results["pgd20" + suffix] >= results["pgd50" + suffix]
    for norm, suffix in ((LINF, ""), (L2, "_l2")):
        attack = create_attack("pgd20", norm)
        assert results["pgd20" + suffix] == accuracy(model, data, attack, seed=0, device=CPU)
    assert titles[:2] == ["natural", "FGSM (L-infinity, eps = 0.1)"]
    assert titles[-1] == "PGD-50 (L2, eps = 0.6)"
    first_l2 = evaluate(model, data, threat=[L2], attacks=["pgd20"], device=CPU)
    assert first_l2 == {"natural": 0.75, "pgd20": results["pgd20_l2"]}


def test_evaluate_shows_pgd20_on_the_images_of_autoattack():
    model = network()
    data = data_for(model)
    weak = ThreatModel("linf", 0.001)
    # The five images are 0, 8, ..., 32, all misclassified: AutoAttack has nothing to do.
    results = evaluate(model, data, threat=[weak], attacks=["pgd20", "autoattack"], device=CPU, autoattack_examples=5)
    after = ["after_apgd_ce", "after_apgd_t", "after_fab_t", "after_square"]
    assert list(results) == ["natural", "pgd20", SAME_EXAMPLES, *after, "autoattack"]
    assert results == {"natural": 0.75, "pgd20": 0.75, SAME_EXAMPLES: 0, "autoattack": 0} | dict.fromkeys(after, 0)
    few = data.subset(evenly_spread(40, 5))
    assert SAME_EXAMPLES not in evaluate(model, few, threat=[weak], attacks=["pgd20", "autoattack"], device=CPU)


def test_members_of_autoattack_by_name():
    model, threat = network(), ThreatModel("l2", 0.05)
    data, messages = data_for(model), []
    results = evaluate(
        model,
        data,
        threat=[threat],
        attacks=["pgd20", "apgd_ce"],
        device=CPU,
        autoattack_examples=11,
        on_pass=lambda *message: messages.append(message),
    )
    assert list(results) == ["natural", "pgd20", SAME_EXAMPLES, "apgd_ce"]
    attack = AutoAttack(0.05, norm="l2", attacks=["apgd-ce"])
    verdicts = run_autoattack(attack, model, data.subset(evenly_spread(40, 11)), device=CPU)
    assert results["apgd_ce"] == verdicts.accuracies()["apgd-ce"] <= results[SAME_EXAMPLES]
    assert messages == [("APGD-CE (L2, eps = 0.05)", 1, 1, results["apgd_ce"])]


def test_few_classes_skip_a_member():
    torch.manual_seed(0)
    model = build(**OPTIONS | {"num_classes": 3, "norm_layer": "gn"}).eval()
    data = make_images(12, classes=3)
    data.labels = (model(data.images / 255).argmax(dim=1) + 1) % 3  # nothing to do
    with pytest.warns(UserWarning, match="without apgd-t") as warned:
        results = evaluate(model, data, threat=[LINF, L2], attacks=["autoattack"], device=CPU)
    assert len(warned) == 2  # one for each threat model
    after = ["after_apgd_ce", "after_fab_t", "after_square"]
    assert list(results) == ["natural", *after, "autoattack", *(f"{name}_l2" for name in [*after, "autoattack"])]


def test_evaluate_gives_the_distance_once():
    model = network()
    data, titles = data_for(model), []
    results = evaluate(
        model, data, threat=[L2, LINF], attacks=["fgsm", "deepfool"], device=CPU, on_attack=titles.append
    )
    assert list(results) == ["natural", "fgsm", "deepfool", "fgsm_linf"]
    assert results["deepfool"] == robustness_distance(model, data, device=CPU) > 0
    assert titles[2] == "DeepFool"


def test_evaluate_with_a_surrogate():
    model, surrogate = network(), network(seed=1)
    data = data_for(model)
    results = evaluate(model, data, threat=[LINF, L2], attacks=["pgd20"], device=CPU, seed=2, surrogate=surrogate)
    assert list(results) == ["natural", TRANSFERS[0], "pgd20", TRANSFERS[1], "pgd20_l2"]
    for threat, name in zip((LINF, L2), TRANSFERS, strict=True):
        black_box = Transfer(create_attack("pgd20", threat), surrogate)
        assert results[name] == accuracy(model, data, black_box, seed=2, device=CPU)


def test_evaluate_takes_one_threat_model_per_norm():
    with pytest.raises(ConfigError, match=r"one threat model per norm.*0\.1.*0\.2"):
        evaluate(network(), make_images(), threat=[LINF, ThreatModel("linf", 0.2)], attacks=["fgsm"], device=CPU)
