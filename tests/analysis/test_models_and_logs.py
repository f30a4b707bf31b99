"""Analyses over several models and attacks, of logs, and of the toy surface."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyengm.analysis import accuracy_curve, cross_robustness, instances, loss_gap, toy_surface
from pyengm.analysis.toy_surface import local_entropy
from pyengm.attacks import FGSM, PGD, Transfer
from pyengm.errors import ConfigError
from pyengm.models import build


def network(seed=0):
    torch.manual_seed(seed)
    model = build("cnn4", in_channels=1, image_size=8, width=2)
    model.train()(torch.rand(32, 1, 8, 8))
    return model.eval()


def images(n=12):
    torch.manual_seed(5)
    return torch.rand(n, 1, 8, 8), torch.arange(n) % 10


def right(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(1) == y).numpy()


def test_cross_robustness():
    x, _ = images()
    models = {"one": network(0), "two": network(1)}
    y = models["one"](x).argmax(1)
    attacks = {"none": None, "fgsm": FGSM(0.1)}
    found = cross_robustness(models, x, y, attacks, surrogates={"two": models["two"]}, batch_size=5)
    assert (found.models, found.attacks) == (("one", "two"), ("none", "fgsm", "fgsm on two"))
    for k, model in enumerate(models.values()):
        assert (found.correct[k, 0] == right(model, x, y)).all()
        assert (found.correct[k, 1] == right(model, FGSM(0.1)(model, x, y), y)).all()
    transferred = Transfer(FGSM(0.1), models["two"])(models["one"], x, y)
    assert (found.correct[0, 2] == right(models["one"], transferred, y)).all()
    assert (found.correct[1, 2] == found.correct[1, 1]).all()  # it is its own surrogate
    p = found.accuracy
    np.testing.assert_allclose(found.standard_error, np.sqrt(p * (1 - p) / 12))
    assert found.plot().texts
    with pytest.raises(ConfigError, match="at least one"):
        cross_robustness({}, x, y, attacks)


def test_accuracy_curve():
    model, (x, _) = network(), images()
    y = model(x).argmax(1)
    found = accuracy_curve(model, x, y, lambda eps: PGD(eps, eps / 2, 5, random_start=False), [0.0, 0.05, 0.3])
    assert found.accuracy[0] == 1
    for values, eps in zip(found.correct, found.values, strict=True):
        attack = PGD(eps, eps / 2, 5, random_start=False)
        assert (values == right(model, attack(model, x, y), y)).all()
    assert found.plot().get_xlabel() == "eps"
    with pytest.raises(ConfigError, match="at least one value"):
        accuracy_curve(model, x, y, FGSM, [])


def test_loss_gap():
    model, (x, y) = network(), images()
    weak, strong = FGSM(0.1), PGD(0.1, 0.02, 10, loss="ce", random_start=False)
    found = loss_gap(model, x, y, weak, strong, batch_size=5)
    for values, attack in ((found.first, weak), (found.second, strong)):
        losses = F.cross_entropy(model(attack(model, x, y)).double(), y, reduction="none").detach()
        np.testing.assert_allclose(values, losses, rtol=1e-5)
    np.testing.assert_allclose(found.gap, found.second - found.first)
    assert found.plot().get_xlabel()


class TestInstances:
    def log(self, n=20):
        rng = np.random.default_rng(0)
        names = ("grad_norm", "step_size", "delta_l2", "delta_linf")
        return {epoch: {name: rng.random(n) for name in names} for epoch in (3, 1)}

    def test_values(self):
        log = self.log()
        found = instances(log)
        assert found.epochs.tolist() == [1, 3]
        np.testing.assert_allclose(found.mean_norm, (log[1]["grad_norm"] + log[3]["grad_norm"]) / 2)
        assert (found.mean_norm[np.argsort(found.rank)] == np.sort(found.mean_norm)).all()
        g = log[3]["grad_norm"]
        assert found.ratio[1] == pytest.approx((g @ g / 20) / (g.sum() / 20) ** 2)
        np.testing.assert_allclose(found.delta[0, :, 1], log[1]["delta_linf"])
        assert len(found.plot()) == 2

    def test_subsets(self):
        found = instances(self.log(25))
        parts = [found.subset(k, k) for k in range(1, 11)]
        assert sorted(np.concatenate(parts)) == list(range(25))
        assert max(found.mean_norm[parts[0]]) < min(found.mean_norm[parts[9]])
        assert sorted(found.subset(1, 2)) == sorted([*parts[0], *parts[1]])
        shares = found.class_shares(np.arange(25) % 5)
        assert shares.shape == (10, 5)
        np.testing.assert_allclose(shares.sum(1), 1)
        with pytest.raises(ConfigError, match="1 <= first <= last"):
            found.subset(0, 3)

    def test_equal_images_have_a_ratio_of_one(self):
        log = {0: {name: np.full(5, 0.3) for name in ("grad_norm", "step_size", "delta_l2", "delta_linf")}}
        assert instances(log).ratio[0] == pytest.approx(1)

    def test_refused(self):
        with pytest.raises(ConfigError, match="has no epochs"):
            instances({})
        with pytest.raises(ConfigError, match="has no step_size"):
            instances({0: {"grad_norm": np.ones(3)}})


class TestToySurface:
    @pytest.mark.parametrize("threat", ["none", "l2", "linf"])
    @pytest.mark.parametrize("model", ["linear", "swish"])
    def test_the_worst_image(self, model, threat):
        """Against a search over many images of the ball."""
        found = toy_surface(model, threat, eps=0.6, resolution=5, extent=2.0, steps=2000)
        angles = np.linspace(0, 2 * np.pi, 721)
        if threat == "l2":
            ball = 0.6 * np.stack([np.cos(angles), np.sin(angles)], 1)[:, None] * np.linspace(0, 1, 101)[None, :, None]
        else:
            side = np.linspace(-0.6, 0.6, 201)
            ball = np.stack(np.meshgrid(side, side), -1)
        x = np.array([1.0, 0.5]) + (0 if threat == "none" else 1) * ball.reshape(-1, 2)
        for i, w2 in enumerate(found.grid):
            for j, w1 in enumerate(found.grid):
                z = x @ np.array([w1, w2])
                f = z if model == "linear" else z / (1 + np.exp(-z))
                assert found.loss[i, j] == pytest.approx(np.logaddexp(0, -f).max(), abs=2e-3)

    def test_the_gradient_jumps_on_the_axes_in_linf_alone(self):
        """Across the axis w1 = 0 the slope in w1 changes by 2 eps times the slope of the loss in L-infinity."""
        jumps = {}
        for threat in ("l2", "linf"):
            found = toy_surface("linear", threat, resolution=2001, extent=2.0)
            row = found.loss[1500]  # w2 = 1
            middle, h = 1000, found.grid[1] - found.grid[0]
            jumps[threat] = (row[middle + 1] - row[middle]) / h - (row[middle] - row[middle - 1]) / h
        assert abs(jumps["l2"]) < 0.01
        assert jumps["linf"] > 0.3

    def test_local_entropy_is_an_integral(self):
        found = toy_surface("linear", "linf", resolution=61, extent=2.0, gamma=8.0)
        u = np.linspace(-2.5, 2.5, 401)
        a, b = np.meshgrid(u, u)
        density = np.exp(-8.0 * (a**2 + b**2) / 2)
        density /= density.sum()
        for i, j in ((30, 30), (10, 50), (45, 20)):
            w1, w2 = found.grid[j] + a, found.grid[i] + b
            inner, reach = w1 + 0.5 * w2, 0.6 * (np.abs(w1) + np.abs(w2))
            quadrature = -np.log((density / (1 + np.exp(-(inner - reach)))).sum())
            assert found.entropy[i, j] == pytest.approx(quadrature, abs=2e-3)
        np.testing.assert_allclose(local_entropy(np.full((9, 9), 0.7), 0.1, 1.0), 0.7)
        assert len(found.plot()) == 2

    def test_refused(self):
        with pytest.raises(ConfigError, match="a model of"):
            toy_surface("cubic")
        with pytest.raises(ConfigError, match="resolution >= 3"):
            toy_surface(resolution=1)
