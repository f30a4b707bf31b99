"""Accuracies of several models under several attacks, curves, and checks for masked gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from pyengm.analysis import accuracy_curve, cross_robustness
from pyengm.attacks import FGSM, PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.ops import Key

KEY = Key(0, 0, torch.arange(12))


def right(model, x, y):
    return (model(x).argmax(dim=1) == y).numpy()


def test_every_model_under_every_attack(two_nets, images, labels, figure_text):
    a, b = (net for _, net in two_nets)
    pgd, fgsm = PGD(0.1, 0.03, 4), FGSM(0.1)
    attacks = {"clean": None, "PGD-4": pgd, "FGSM": fgsm}
    found = cross_robustness({"a": a, "b": b}, attacks, images, labels, surrogates={"s": b}, batch_size=5)
    assert found.attacks.tolist() == ["clean", "PGD-4", "FGSM", "PGD-4 from s", "FGSM from s"]
    transferred = pgd(b, images, labels, key=KEY), fgsm(b, images, labels)
    for row, net in enumerate((a, b)):
        own = images, pgd(net, images, labels, key=KEY), fgsm(net, images, labels)
        for column, x in enumerate((*own, *transferred)):
            verdicts = right(net, x, labels)
            np.testing.assert_array_equal(found.verdicts[row, column], verdicts)
            p = verdicts.mean()
            assert found.accuracy[row, column] == pytest.approx(p)
            assert found.standard_error[row, column] == pytest.approx((p * (1 - p) / 12) ** 0.5)
    assert "attack" in figure_text(found.plot())


@pytest.mark.parametrize(
    ("over", "values"), [("eps", [0.0, 0.1, 0.3]), ("steps", [1, 5]), ("step_size", [0.01, 0.1]), ("restarts", [1, 3])]
)
def test_a_curve_is_pgd_at_each_value(net, images, labels, over, values, figure_text):
    base = {"eps": 0.1, "step_size": 0.04, "steps": 3, "restarts": 1}
    options = {name: base[name] for name in ("step_size", "steps", "restarts")}
    found = accuracy_curve(net, images, labels, ThreatModel("linf", 0.1), values, over=over, checks=False, **options)
    for row, value in enumerate(values):
        x = PGD(**{**base, over: value})(net, images, labels, key=KEY)
        np.testing.assert_array_equal(found.verdicts[row], right(net, x, labels))
    assert len(found.check_names) == 0
    assert "PGD" in figure_text(found.plot())


class Masked(nn.Module):
    """A good classifier whose gradient is zero: the input is rounded."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        s = ((x * 4).round() / 4).flatten(1).mean(1) - 0.5
        return torch.stack([-s, s], dim=1) * self.scale * 10


class Plain(Masked):
    """The same without the rounding."""

    def forward(self, x):
        s = x.flatten(1).mean(1) - 0.5
        return torch.stack([-s, s], dim=1) * self.scale * 10


def test_checks_find_masked_gradients(figure_text):
    y = torch.arange(200) % 2
    x = (
        torch.rand(200, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
        + 0.5 * y.view(-1, 1, 1, 1)
        + 0.1
    )
    threat = ThreatModel("linf", 0.3)
    plain = accuracy_curve(Plain(), x, y, threat, [0.0, 0.1, 0.2, 0.3], steps=5)
    assert plain.check_passed.all(), dict(zip(plain.check_names, plain.check_values, strict=True))
    masked = accuracy_curve(Masked(), x, y, threat, [0.0, 0.1, 0.2, 0.3], steps=5, surrogate=Plain())
    failed = set(masked.check_names[~masked.check_passed])
    assert "at most 1 % of images have a zero gradient" in failed
    assert "accuracy is at most 1 % at a large radius" in failed
    assert "PGD is not weaker than examples of the surrogate" in failed
    figure_text(masked.plot())
    assert "failed" in masked.plot().get_title()


def test_wrong_options(net, images, labels):
    with pytest.raises(ConfigError, match="ascending"):
        accuracy_curve(net, images, labels, ThreatModel("linf", 0.1), [0.2, 0.1])
    with pytest.raises(ConfigError, match="a model and an attack"):
        cross_robustness({}, {"clean": None}, images, labels)
