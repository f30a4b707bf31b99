"""FMN, DDN and the L2 attack of Carlini & Wagner: Foolbox's results, linear models, and what they return."""

import math

import pytest
import torch
from helpers.attacked import EPS, batch, both_norms, distances, network
from torch import nn

from pyengm.attacks import DDN, FMN, CarliniWagnerL2, ThreatModel, Within
from pyengm.errors import ConfigError, NonFiniteError

ATTACKS = {
    "FMN, linf": lambda steps: FMN("linf", steps, step_size=0.3),
    "FMN, l2": lambda steps: FMN("l2", steps, step_size=0.3),
    "DDN": lambda steps: DDN(steps, radius=0.3),
    "CW": lambda steps: CarliniWagnerL2(steps, searches=10, step_size=0.02, c=0.1),
}
every_attack = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


@pytest.fixture
def foolbox():
    return pytest.importorskip("foolbox")


def problem():
    """A network in float64 and images with the labels that it gives, but for the first."""
    model, (x, _) = network(dtype=torch.float64), batch(dtype=torch.float64)
    y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10
    return model, x, y


def compare(foolbox, theirs, ours):
    model, x, y = problem()
    expected, _, adversarial = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    found = ours(model, x, y)
    assert adversarial.sum() >= 5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert distances(found, x, "linf")[adversarial].topk(3).values.min() > 1e-3


def onto_the_ball(attack, x, x0, epsilon):
    """The projection of FMN in L2. Foolbox 3.3.4 divides norms by themselves, so that its own does nothing."""
    norms = (x - x0).raw.flatten(1).norm(dim=1)
    return x0 + (x - x0) * (epsilon.raw / norms.clamp(min=1e-12)).clamp(max=1).view(-1, 1, 1, 1)


@both_norms
def test_fmn_is_that_of_foolbox(foolbox, norm, monkeypatch):
    theirs = foolbox.attacks.LInfFMNAttack if norm == "linf" else foolbox.attacks.L2FMNAttack
    if norm == "l2":
        monkeypatch.setattr(theirs, "project", onto_the_ball)
    compare(foolbox, theirs(steps=40, max_stepsize=0.3, gamma=0.08), FMN(norm, 40, step_size=0.3, gamma=0.08))


def test_ddn_is_that_of_foolbox(foolbox):
    compare(foolbox, foolbox.attacks.DDNAttack(steps=40, init_epsilon=0.4, gamma=0.07), DDN(40, radius=0.4, gamma=0.07))


def test_carlini_wagner_is_that_of_foolbox(foolbox):
    options = {"steps": 60, "binary_search_steps": 6, "stepsize": 0.05, "initial_const": 0.05}
    theirs = foolbox.attacks.L2CarliniWagnerAttack(**options, abort_early=False)
    model, x, y = problem()
    expected, _, adversarial = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x[1:], y[1:], epsilons=None)
    assert adversarial.all()
    found = CarliniWagnerL2(60, searches=6, step_size=0.05, c=0.05)(model, x[1:], y[1:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Linear(nn.Module):
    """Two logits (0, w . x - b), whose boundary is a plane."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        z = x.flatten(1) @ self.w - self.b
        return torch.stack([torch.zeros_like(z), z], dim=1)


@every_attack
def test_distances_to_a_plane(make):
    """|w . x - b| over the dual norm of w, within 2 % after many steps."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.1 * (torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64) - 0.5)
    model = Linear(w, (0.5 * w.sum() + 0.15).item())
    y = model(x).argmax(dim=1)
    attack = make(200)
    gap = (x.flatten(1) @ w - model.b).abs()
    exact = gap / torch.linalg.vector_norm(w, ord=1 if attack.norm == "linf" else 2)
    found = attack.distances(model, x, y)
    assert (found >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)


@every_attack
def test_what_is_returned(make):
    model, x, y = problem()
    attack = make(30)
    before = x.clone()
    found = attack(model, x, y)
    assert x.equal(before)
    assert found[0].equal(x[0])  # misclassified as it is
    is_found = model(found).argmax(dim=1) != y
    assert is_found.sum() >= 5
    assert (found[~is_found] == x[~is_found]).all()
    assert found.min() >= 0
    assert found.max() <= 1
    expected = distances(found, x, attack.norm).where(is_found, torch.inf)
    torch.testing.assert_close(attack.distances(model, x, y), expected)
    assert not any(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@every_attack
def test_a_constant_model_has_no_adversarial_examples(make):
    x = torch.rand(3, 1, 4, 4)
    model = lambda t: 0 * t.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])  # noqa: E731
    y = torch.zeros(3, dtype=torch.int64)
    assert make(5)(model, x, y).equal(x)
    assert make(5).distances(model, x, y).tolist() == [math.inf] * 3


@every_attack
def test_values_that_are_not_finite(make):
    x = torch.rand(3, 1, 4, 4)
    model = lambda t: t.flatten(1)[:, :3] * float("nan")  # noqa: E731
    with pytest.raises(NonFiniteError):
        make(3)(model, x, torch.zeros(3, dtype=torch.int64))


@both_norms
def test_within_a_threat_model(norm):
    model, x, y = problem()
    attack = FMN(norm, 40)
    nearest = attack.distances(model, x, y)
    eps = nearest[1:].median().item()
    found = Within(attack, ThreatModel(norm, eps))(model, x, y)
    assert (model(found).argmax(dim=1) != y).tolist() == (nearest <= eps).tolist()
    assert distances(found, x, norm).max() <= eps * (1 + 1e-6)
    with pytest.raises(ConfigError, match="minimises the distance in l2"):
        Within(DDN(), ThreatModel("linf", EPS["linf"]))


def test_confidence_of_carlini_wagner():
    model, x, y = problem()
    found = CarliniWagnerL2(100, searches=6, step_size=0.05, c=0.1, confidence=0.05)(model, x[1:], y[1:])
    z = model(found)
    own = z.gather(1, y[1:, None]).squeeze(1)
    assert (z.scatter(1, y[1:, None], -math.inf).amax(dim=1) - own).min() >= 0.05 - 1e-9


def test_options_out_of_range():
    for call in (
        lambda: FMN("l1"),
        lambda: FMN(steps=0),
        lambda: FMN(gamma=1.0),
        lambda: FMN(step_size=0.0),
        lambda: DDN(radius=-1.0),
        lambda: DDN(gamma=0.0),
        lambda: CarliniWagnerL2(searches=0),
        lambda: CarliniWagnerL2(c=0.0),
        lambda: CarliniWagnerL2(confidence=-1.0),
        lambda: DDN(bn="evil"),
    ):
        with pytest.raises(ConfigError, match=" is "):
            call()
