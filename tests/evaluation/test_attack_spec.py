"""Specs of attacks: what they stand for, their errors, and the results of several radii."""

import pytest
import torch
from helpers.evaluation import CPU, L2, LINF, data_for, make_images, network

from pyengm.attacks import PGD, AutoAttack, CarliniWagnerL2, ThreatModel, Transfer, Within
from pyengm.attacks.eot_pgd import EOTPGD
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError
from pyengm.evaluation import (
    ATTACKS,
    PROTOCOLS,
    accuracy,
    check_attacks,
    create_attack,
    curves_of,
    evaluate,
    final_attacks,
    parse_spec,
)
from pyengm.evaluation.attack_registry import ShareOfEps
from pyengm.evaluation.attack_spec import attacks_by_threat


def test_a_spec_is_its_attack():
    attack = create_attack("pgd:steps=7,step_size=2/255,loss=ce,restarts=5,early_stop=true", LINF)
    assert type(attack) is PGD
    assert (attack.steps, attack.step_size, attack.restarts, attack.early_stop) == (7, 2 / 255, 5, True)
    assert attack.loss is cross_entropy
    assert attack.threat == LINF
    assert create_attack("pgd:steps=5,step_size=eps/4", L2).step_size == L2.eps / 4
    assert create_attack("pgd:steps=5", L2).step_size == pytest.approx(L2.eps / 2)  # 2.5 eps / steps
    assert create_attack("pgd20:loss=ce", L2).steps == 20
    eot = create_attack("pgd:samples=3", L2)
    assert type(eot) is EOTPGD
    assert eot.samples == 3
    nearest = create_attack("cw_l2:steps=9,confidence=0.5", L2)
    assert isinstance(nearest, Within)
    assert isinstance(nearest.attack, CarliniWagnerL2)
    assert (nearest.attack.steps, nearest.attack.confidence, nearest.threat) == (9, 0.5, L2)
    assert create_attack("targeted_pgd:target=3", L2).target == 3
    assert create_attack("targeted_pgd:target=random", L2).target == "random"
    rand = create_attack("autoattack:version=rand", L2)
    assert isinstance(rand, AutoAttack)
    assert rand.attacks == ("apgd-ce", "apgd-dlr")
    assert create_attack("square:queries=100", L2).queries == 100
    assert create_attack("mifgsm:decay=0.5", LINF).step_size == pytest.approx(0.01)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_made_without_options(name):
    info = ATTACKS[name]
    threat = LINF if "linf" in info.norms else L2
    assert info.make(threat, 0) is not None
    assert str(parse_spec(name)) == name
    assert set(info.options).isdisjoint({"eps", "norm", "on"})


def test_texts_of_one_attack_are_one():
    text = "pgd:steps=50,step_size=2/255,loss=ce,norm=linf,eps=1/255,2/255,3/255"
    for other in (text, "pgd: loss=ce, eps=1/255..3/255, norm=linf, step_size=2/255, steps=50"):
        assert str(parse_spec(other)) == text
        assert parse_spec(str(parse_spec(other))) == parse_spec(text)
    assert parse_spec("pgd:step_size=eps/4").options == (("step_size", ShareOfEps(4)),)
    assert str(parse_spec("pgd:step_size=eps/4,random_start=False")) == "pgd:step_size=eps/4,random_start=false"


def test_radii():
    assert parse_spec("fgsm:eps=1/255..16/255").eps == tuple(i / 255 for i in range(1, 17))
    assert parse_spec("fgsm:eps=0.25..2..0.25").eps == tuple(i / 4 for i in range(1, 9))
    assert parse_spec("fgsm:eps=0..2/255,0.5,1/255").eps == (0, 1 / 255, 2 / 255, 0.5)
    assert parse_spec("fgsm:eps=0.1234567").eps == (0.1234567,)
    assert str(parse_spec("fgsm:eps=0.1234567,1")) == "fgsm:eps=0.1234567,1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg20", "unknown attack 'pdg20'; known: .*did you mean"),
        ("pgd:step=3", "unknown option 'step'; those of pgd are steps, step_size, .*norm, eps.*did you mean"),
        ("pgd20:steps=3", "unknown option 'steps'; those of pgd20 are step_size"),
        ("pgd:steps=many", "steps is 'many'; expected an integer"),
        ("pgd:steps=1.5", "steps is '1.5'; expected an integer"),
        ("pgd:step_size=x/4", "step_size is 'x/4'; expected eps/NUMBER or a number"),
        ("pgd:step_size=eps/0", "step_size is 'eps/0'; expected eps/NUMBER"),
        ("pgd:early_stop=maybe", "early_stop is 'maybe'; expected true or false"),
        ("pgd:steps=3,4", "steps has 2 values; only eps may have several"),
        ("pgd:steps=3,steps=4", "has steps twice"),
        ("pgd:steps", "'steps' is no option; expected NAME:OPTION=VALUE"),
        ("pgd:", "'' is no option"),
        ("pgd:eps=1/255..", "eps is '1/255..'; expected radii"),
        ("pgd:eps=-1", "eps is '-1'; expected radii of 0 or more"),
        ("pgd:eps=nan", "eps is 'nan'; expected radii"),
        ("pgd:eps=0.1..0.2", "eps is '0.1..0.2'; expected a range whose ends are a whole number of steps"),
        ("pgd:eps=3/255..1/255", "expected a range"),
        ("pgd:norm=l1", "norm is 'l1'; expected linf or l2"),
        ("pgd:on=paper", "on is 'paper'; expected model or surrogate"),
    ],
)
def test_texts_that_are_no_spec(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_spec(text)


def test_values_that_the_attack_refuses():
    for text, message in (
        ("pgd:steps=0", "attack 'pgd:steps=0': steps and restarts are 0 and 1"),
        ("pgd:loss=hinge", "attack loss is 'hinge'"),
        ("pgd:samples=0", "samples is 0"),
        ("autoattack:version=fast", "version of AutoAttack is 'fast'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_attacks([text], make_images(), [LINF])


def test_threat_models_of_specs():
    both = attacks_by_threat([LINF, L2], ["pgd20", "ddn", "fmn:norm=linf,eps=0.1", "deepfool:steps=3"])
    assert both == {LINF: ["pgd20", "fmn:norm=linf,eps=0.1", "deepfool:steps=3"], L2: ["pgd20", "ddn"]}
    for attacks, threats, message in (
        (["ddn"], [LINF], "'ddn' is for l2, and the threat models are L-infinity"),
        (["pgd:norm=l2"], [LINF], "is for l2"),
        (["pgd:eps=0.1"], [LINF, L2], "expected norm=linf or norm=l2 beside eps"),
        (["mifgsm:on=surrogate"], [LINF], "needs a surrogate: --surrogate FILE"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_attacks(attacks, make_images(), threats)
    for text in ("square:on=surrogate", "deepfool:on=surrogate"):
        with pytest.raises(ConfigError, match="is for the model itself"):
            check_attacks([text], make_images(), [LINF], surrogate=True)


def test_several_radii_make_a_curve():
    model = network()
    data = data_for(model)
    text = "pgd:steps=3,loss=ce,norm=linf"
    results = evaluate(
        model, data, threat=[LINF, L2], attacks=[f"{text},eps=0,0.1..0.3..0.1", "pgd:steps=2"], device=CPU
    )
    radii = (0, 0.1, 0.2, 0.3)
    names = [f"{text},eps={eps:g}" for eps in radii]
    assert list(results) == ["natural", *names, "pgd:steps=2", "pgd:steps=2,norm=l2"]
    for eps, name in zip(radii, names, strict=True):
        attack = PGD(eps, 2.5 * eps / 3, 3, loss="ce")
        assert results[name] == accuracy(model, data, attack, seed=0, device=CPU)
    assert results[names[0]] == results["natural"] > results[names[-1]]
    assert curves_of(results) == {text: {eps: results[name] for eps, name in zip(radii, names, strict=True)}}


def test_attacks_on_a_surrogate():
    model, surrogate = network(), network(seed=1)
    data, wide = data_for(model), ThreatModel("linf", 0.3)
    text = "mifgsm:steps=4,on=surrogate"
    results = evaluate(model, data, threat=wide, attacks=[text], device=CPU, surrogate=surrogate)
    transfer = Transfer(create_attack("mifgsm:steps=4", wide), surrogate)
    assert results[text] == accuracy(model, data, transfer, seed=0, device=CPU)
    assert results[text] > evaluate(model, data, threat=wide, attacks=["mifgsm:steps=4"], device=CPU)["mifgsm:steps=4"]


def test_minimum_norm_attacks_count_within_the_ball():
    model = network()
    data = data_for(model)
    threat = ThreatModel("l2", 0.6)
    results = evaluate(model, data, threat=threat, attacks=["ddn", "ddn:eps=0.6", "fmn"], device=CPU)
    distances = create_attack("ddn", threat).attack.distances(model, data.images / 255, data.labels)
    assert results["ddn"] == (distances > 0.6).double().mean().item() < results["natural"]
    assert results["ddn:eps=0.6"] == results["ddn"]


def test_protocols():
    assert final_attacks([]) == list(PROTOCOLS["engm"]) == ["pgd20", "autoattack"]
    assert final_attacks([], autoattack=False) == ["pgd20"]
    assert final_attacks(["square", "autoattack"], autoattack=False) == ["pgd20", "square", "autoattack"]
    assert final_attacks([], protocol="robustbench") == ["autoattack"]
    assert final_attacks([], protocol="dynamic")[0] == "fgsm"
    for name, texts in PROTOCOLS.items():
        assert final_attacks([], protocol=name) == list(texts), name
        check_attacks(texts, make_images(), [LINF])
    atas = create_attack(PROTOCOLS["atas"][1], ThreatModel("linf", 8 / 255))
    assert (atas.steps, atas.loss, atas.random_start) == (50, cross_entropy, True)
    assert atas.step_size == pytest.approx(8 / 255 / 5)
    entropy = create_attack(PROTOCOLS["entropy"][0], ThreatModel("linf", 8 / 255))
    assert (entropy.steps, entropy.step_size) == (20, pytest.approx(2 / 255))
    with pytest.raises(ConfigError, match=r"unknown protocol 'engn'; known: engm, .*did you mean"):
        final_attacks([], protocol="engn")


def test_passes_of_a_curve_are_those_of_single_calls():
    """Eight radii in one call run the model as often as eight calls do, less the natural accuracy of seven."""

    class Counting(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.images = net, 0

        def forward(self, x):
            self.images += len(x)
            return self.net(x)

    data = data_for(network())
    model = Counting(network())
    evaluate(model, data, threat=LINF, attacks=["pgd:steps=3,eps=1/255..8/255"], device=CPU)
    together, model.images = model.images, 0
    for level in range(1, 9):
        evaluate(model, data, threat=LINF, attacks=[f"pgd:steps=3,eps={level}/255"], device=CPU)
    assert together == model.images - 7 * (len(data) + 1)  # one image tells the number of classes
