"""The loss on planes of images and of weights, and how it changes with the weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm.analysis import input_plane, smoothness, weight_plane
from pyengm.analysis.input_plane import directions
from pyengm.analysis.weight_plane import filter_normalized
from pyengm.attacks import FGSM, PGD
from pyengm.errors import ConfigError
from pyengm.models import build


def problem(n=5):
    torch.manual_seed(0)
    model = build("cnn4", in_channels=1, image_size=8, width=2).double()
    x, y = torch.rand(n, 1, 8, 8, dtype=torch.float64), torch.arange(n) % 10
    model.train()(x)
    return model.eval(), x, y


class TestInputPlane:
    def test_losses(self):
        model, x, y = problem()
        attack = PGD(0.1, 0.03, 5, loss="ce", random_start=False)
        found = input_plane(model, x, y, attack, eps=0.1, resolution=5, batch_size=10, seed=2)
        d1, d2 = directions(attack(model, x, y) - x, torch.arange(5), 2)
        np.testing.assert_allclose(found.steps, [-1, -0.5, 0, 0.5, 1])
        for row, b in enumerate(found.steps):
            for column, a in enumerate(found.steps):
                moved = (x + 0.1 * (a * d1 + b * d2)).clamp(0, 1)
                losses = F.cross_entropy(model(moved), y, reduction="none").detach()
                np.testing.assert_allclose(found.losses[:, row, column], losses, rtol=1e-9)
        np.testing.assert_allclose(found.mean, found.losses.mean(0))
        at_image = F.cross_entropy(model(x), y, reduction="none").detach()
        np.testing.assert_allclose(found.losses[:, 2, 2], at_image, rtol=1e-9)
        assert (found.losses[:, 2, 4] > found.losses[:, 2, 2]).all()
        assert found.plot().get_xlabel()

    def test_directions(self):
        delta = torch.randn(3, 1, 8, 8, dtype=torch.float64)
        d1, d2 = directions(delta, torch.arange(3), 0)
        torch.testing.assert_close((d1 * d2).flatten(1).sum(1), torch.zeros(3).double(), atol=1e-9, rtol=0)
        assert d1.flatten(1).abs().amax(1).tolist() == pytest.approx([1, 1, 1])
        assert d2.flatten(1).abs().amax(1).tolist() == pytest.approx([1, 1, 1])
        torch.testing.assert_close(d1, delta / delta.flatten(1).abs().amax(1).view(-1, 1, 1, 1))
        still, other = directions(torch.zeros_like(delta), torch.arange(3), 0)
        assert not still.any()
        assert other.any()

    def test_refused(self):
        model, x, y = problem()
        with pytest.raises(ConfigError, match="odd resolution"):
            input_plane(model, x, y, FGSM(0.1), eps=0.1, resolution=4)


class TestWeightPlane:
    def test_filters(self):
        weights = [torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(5, 4)]
        found = filter_normalized(weights, 0)
        for w, d in zip(weights[::2], found[::2], strict=True):
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
        assert not found[1].any()

    @pytest.mark.parametrize("attack", [None, FGSM(0.1)])
    def test_losses(self, attack):
        model, x, y = problem()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        found = weight_plane(model, x, y, attack, resolution=3, extent=0.5, seeds=(0, 1), batch_size=2)
        assert all(model.state_dict()[name].equal(t) for name, t in before.items())
        assert found.losses.shape == (2, 3)
        other, _, _ = problem()
        params = list(other.parameters())
        for row, seed in enumerate((0, 1)):
            direction = filter_normalized([p.detach() for p in params], 2 * seed)
            for column, step in enumerate(found.steps):
                with torch.no_grad():
                    for p, d in zip(params, direction, strict=True):
                        p.add_(d, alpha=step)
                x_adv = x if attack is None else attack(other, x, y)
                assert found.losses[row, column] == pytest.approx(F.cross_entropy(other(x_adv), y).item(), rel=1e-9)
                with torch.no_grad():
                    for p, d in zip(params, direction, strict=True):
                        p.sub_(d, alpha=step)
        assert found.plot().get_ylabel()

    def test_two_dimensions(self):
        model, x, y = problem(2)
        found = weight_plane(model, x, y, None, dims=2, resolution=3)
        line = weight_plane(model, x, y, None, dims=1, resolution=3)
        np.testing.assert_allclose(found.losses[0, 1], line.losses[0], rtol=1e-9)
        assert found.plot().get_ylabel() == "second direction"

    def test_weights_are_restored_after_an_error(self):
        model, x, y = problem(2)
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(RuntimeError):
            weight_plane(model, x, y, lambda *_: (_ for _ in ()).throw(RuntimeError()), resolution=3)
        assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))

    def test_refused(self):
        model, x, y = problem(2)
        with pytest.raises(ConfigError, match="dims of 1 or 2"):
            weight_plane(model, x, y, None, dims=3)


class TestSmoothness:
    def test_ratios(self):
        """Of a linear model, whose worst image is known: x' = x - y eps w / |w| in L2 moves as the unit vector does."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
        with torch.no_grad():
            model[1].weight[1] = -model[1].weight[0]
        x, y = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0])
        found = smoothness(
            model, x, y, lambda norm: FGSM(0.1, norm=norm), norms=("l2",), radii=(1e-4, 1e-3), directions=2, seed=5
        )
        assert found.gradient.shape == found.perturbation.shape == (1, 2, 2)
        w = model[1].weight.detach()
        generator = torch.Generator().manual_seed(10)
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        moved = w + 1e-3 * d / d.norm()

        def images(weight):
            sign = torch.where(y == 0, -1.0, 1.0).double()[:, None]
            step = weight[0] - weight[1]
            return x.flatten(1) + sign * 0.1 * step / step.norm()

        expected = (images(moved) - images(w)).norm().item() / 1e-3
        assert found.perturbation[0, 1, 0] == pytest.approx(expected, rel=1e-6)
        # Lemma 2: |x'(a) - x'(b)| <= 2 eps / min |w| * |a - b|, here for each of the three images.
        assert (found.perturbation <= 2 * 0.1 / (w[0] - w[1]).norm().item() * np.sqrt(2) * np.sqrt(3)).all()

    def test_gradients(self):
        model, x, y = problem(4)
        before = [p.detach().clone() for p in model.parameters()]
        found = smoothness(model, x, y, lambda norm: None, norms=("linf",), radii=(1e-6,), directions=1, batch_size=3)
        assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
        assert not found.perturbation.any()
        params = list(model.parameters())
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
        length = sum(d.square().sum() for d in drawn) ** 0.5
        product = torch.autograd.grad(grads, params, [d / length for d in drawn])
        expected = sum(h.square().sum() for h in product) ** 0.5
        assert found.gradient[0, 0, 0] == pytest.approx(expected.item(), rel=1e-3)
        assert len(found.plot()) == 2

    def test_refused(self):
        model, x, y = problem(2)
        with pytest.raises(ConfigError, match="radii > 0"):
            smoothness(model, x, y, lambda norm: None, radii=(0.0,))
