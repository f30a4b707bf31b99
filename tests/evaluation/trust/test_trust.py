"""Defences that hide gradients are flagged, honest models are not."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.defences import DEFENCES, THREAT, honest_model
from helpers.evaluation import CPU

from pyengm.attacks import ThreatModel
from pyengm.data import load
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning
from pyengm.evaluation.trust import is_stronger, trust_block

THREATS = (THREAT, ThreatModel("l2", 0.5))
# Checks that each defence fails, whatever it is wrapped around. Square need not beat PGD on saturated logits.
FAILS = {
    "rounded": {"reaches_zero", "black_box", "gradients"},
    "saturated": {"reaches_zero", "gradients", "resolution"},
    "noisy": {"noise", "outputs_repeat", "verdicts_repeat"},
}


def flagged(model, threat=THREAT, **options):
    """Names of the checks that warn."""
    block = trust_block(model, load("digits", "test"), threat, device=CPU, **options)
    assert block["images"] == 100
    assert all(check["figure"] and check["title"] for check in block["checks"])
    return {check["name"] for check in block["checks"] if not check["passed"]}


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("norm_layer", ["bn", "gn"])
@pytest.mark.parametrize("adversarial", [True, False])
def test_no_check_warns_of_an_honest_model(adversarial, norm_layer, threat):
    assert flagged(honest_model(adversarial, norm_layer), threat, warnings=[]) == set()


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", DEFENCES)
def test_defences_are_flagged(name, threat):
    for adversarial in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert flagged(DEFENCES[name](honest_model(adversarial)).eval(), threat) >= FAILS[name]


def test_logits_in_16_bits_are_coarse():
    model = honest_model(True)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        assert flagged(model.bfloat16(), replace(THREAT, eps=0.02)) >= {"resolution"}
    finally:
        model.float().load_state_dict(state)


def test_an_attack_that_gets_weaker_is_flagged(monkeypatch):
    """Each comparison warns where the attack that should be stronger is the weaker one."""
    model, step = honest_model(False), ThreatModel.step_

    def backwards(threat, x_adv, grad, x, size, **options):  # PGD goes down the loss; FGSM takes one step, up
        return step(threat, x_adv, grad if size == threat.eps else -grad, x, size, **options)

    monkeypatch.setattr(ThreatModel, "step_", backwards)
    assert flagged(model) >= {"single_step", "black_box", "reaches_zero"}


def test_doubts_of_autoattack_are_a_line():
    warning = AutoAttackWarning("square", "Square fools it")
    block = trust_block(honest_model(False), load("digits", "test"), THREAT, device=CPU, warnings=[warning, warning])
    assert block["checks"][-1] == {
        "name": "autoattack",
        "title": "AutoAttack has no doubts",
        "passed": False,
        "figure": "Square fools it",
    }
    assert len(block["curve"]["eps"]) == len(block["curve"]["accuracy"]) == 7
    assert block["curve"]["eps"][-1] == 0.5


@pytest.mark.parametrize(("images", "eps", "reason"), [(19, 0.1, "at least 20"), (40, 0.0, "eps = 0")])
def test_no_checks_that_would_say_nothing(images, eps, reason):
    few = load("digits", "test").subset(torch.arange(images))
    block = trust_block(honest_model(False), few, ThreatModel("linf", eps), device=CPU)
    assert block["checks"] == []
    assert reason in block["reason"]


def test_a_model_is_left_as_it_was():
    model = honest_model(False).train()
    generator = torch.get_rng_state()
    trust_block(model, load("digits", "test").subset(torch.arange(30)), THREAT, device=CPU)
    assert model.training
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())  # those of the training
    assert torch.equal(torch.get_rng_state(), generator)
    model.eval()


def test_is_stronger_is_a_test_of_paired_counts():
    def outcomes(only_this, only_other, both=10):
        """Correct under the first attack and under the other one."""
        first = [False] * only_this + [True] * only_other + [False] * both
        other = [True] * only_this + [False] * only_other + [False] * both
        return torch.tensor(first), torch.tensor(other)

    assert not is_stronger(*outcomes(0, 0))
    assert not is_stronger(*outcomes(4, 0))  # 4 = 2 sqrt(4)
    assert is_stronger(*outcomes(5, 0))
    assert not is_stronger(*outcomes(0, 50))
    for n in range(40):
        assert is_stronger(*outcomes(n, 10)) == (n - 10 > 2 * math.sqrt(n + 10))
