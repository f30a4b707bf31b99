"""DeepFool: distances of a linear model in closed form, points on the boundary of others, and what is unchanged."""

import math

import pytest
import torch
from torch import nn

from pyengm.attacks import PGD
from pyengm.attacks.deepfool import DeepFool
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError, NonFiniteError
from pyengm.evaluation import robustness_distance
from pyengm.models import build

CPU = torch.device("cpu")


def linear(classes=10, scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.mul_(scale)
    return model


def network(classes=10, norm="bn", dtype=torch.float32):
    torch.manual_seed(0)
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm, num_classes=classes)
    model(torch.rand(64, 1, 8, 8))  # running statistics
    with torch.no_grad():
        model.head.weight.mul_(30)  # logits as far apart as those of a trained model
    return model.to(dtype).eval()


def batch(n=40, dtype=torch.float32):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def closed_form(model, x):
    """min_k |f_k - f_own| / ||w_k - w_own||, in float64."""
    logits, weight = model(x).detach().double(), model[1].weight.detach().double()
    distances = []
    for z in logits:
        own = z.argmax()
        others = [k for k in range(len(z)) if k != own]
        distances.append(min((z[own] - z[k]) / (weight[own] - weight[k]).norm() for k in others))
    return torch.stack(distances)


# Distances


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_distance_of_a_linear_model_is_its_closed_form(classes, scale):
    model, x = linear(classes, scale), batch()
    expected = closed_form(model, x)
    assert expected.min() > 1e-3
    # Single precision: a sum of 64 products, of which the distance is a difference.
    torch.testing.assert_close(DeepFool().distances(model, x).double(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_classes_with_the_largest_logits_are_considered():
    model, x = linear(), batch()
    logits, weight = model(x), model[1].weight.detach()
    top = logits.topk(2, dim=1)
    w = weight[top.indices[:, 0]] - weight[top.indices[:, 1]]
    expected = (top.values[:, 0] - top.values[:, 1]).detach() / w.norm(dim=1)
    first_step = DeepFool(classes=2)
    found = first_step.distances(model, x)
    assert (found <= expected + 1e-5).all()  # less where the line crosses another boundary before
    assert (found >= closed_form(model, x) - 1e-5).all()
    assert (found > closed_form(model, x) + 1e-3).any()


def test_a_model_that_is_right_nowhere_is_at_distance_zero():
    model, x = network(), batch()
    y = model(x).argmax(dim=1)
    y[::3] = (y[::3] + 1) % 10
    distances = DeepFool().distances(model, x, y)
    wrong = torch.arange(40) % 3 == 0
    assert distances[wrong].eq(0).all()
    assert distances[~wrong].gt(0).all()
    x_adv = DeepFool()(model, x, y)
    assert x_adv[wrong].equal(x[wrong])
    torch.testing.assert_close(distances[~wrong], DeepFool().distances(model, x)[~wrong], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("norm", "dtype"), [("bn", torch.float32), ("gn", torch.float32), ("bn", torch.float64)])
@pytest.mark.parametrize("classes", [2, 10, 20])
def test_points_before_the_overshoot_are_on_the_boundary(norm, dtype, classes):
    model, x = network(classes, norm, dtype), batch(dtype=dtype)
    own = model(x).argmax(dim=1)
    assert model(x).topk(2, dim=1).values.diff(dim=1).abs().mean() > 0.1
    points = x + DeepFool().perturbations(model, x)
    top = model(points).topk(2, dim=1)
    assert top.values.diff(dim=1).abs().max() < 1e-3
    assert (top.indices == own[:, None]).any(dim=1).all()  # it is a boundary of the example's own class
    # At half the distance the class is the old one for all but few: the boundary is not passed over.
    half = model((x + points) / 2).argmax(dim=1)
    assert (half == own).double().mean() > 0.9


def test_overshoot_crosses_the_boundary():
    model, x = network(), batch()
    attack = DeepFool(overshoot=0.05)
    r = attack.perturbations(model, x)
    x_adv = attack(model, x)
    torch.testing.assert_close(x_adv, x + 1.05 * r, rtol=0, atol=1e-7)
    assert (model(x_adv).argmax(dim=1) != model(x).argmax(dim=1)).double().mean() > 0.9
    assert DeepFool(overshoot=0)(model, x).equal(x + r)
    small = linear()
    x_adv = DeepFool()(small, x)
    assert (small(x_adv).argmax(dim=1) != small(x).argmax(dim=1)).all()


def test_a_ball_within_the_distance_of_a_linear_model_holds_nothing_adversarial():
    model, x = linear(), batch()
    y = model(x).argmax(dim=1)
    rho = DeepFool().distances(model, x)
    for i in range(10):
        eps = rho[i].item() * 0.999
        x_adv = PGD(eps, eps / 4, 20, norm="l2", loss="margin")(model, x[i : i + 1], y[i : i + 1])
        assert model(x_adv).argmax(dim=1) == y[i]


def test_an_example_does_not_depend_on_the_others():
    model, x = network(dtype=torch.float64), batch(dtype=torch.float64)
    whole = DeepFool().perturbations(model, x)
    alone = torch.cat([DeepFool().perturbations(model, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-9)


def test_an_example_on_the_boundary_does_not_move():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    assert DeepFool().distances(model, batch(5)).eq(0).all()


def test_gradients_whose_squares_underflow():
    model, x = linear(scale=1e-25), batch(8)
    found = DeepFool().distances(model, x).double()
    torch.testing.assert_close(found, closed_form(model, x), rtol=1e-4, atol=1e-5)


def test_too_few_steps_are_a_warning():
    model, x = network(), batch()
    with pytest.warns(UserWarning, match=r"of 40 examples are at no boundary after 1 steps"):
        DeepFool(steps=1).distances(model, x)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        flat[1].weight.zero_()
    with pytest.warns(UserWarning, match=r"40 of 40 .* after 3 steps"):
        assert DeepFool(steps=3).distances(flat, x).eq(0).all()


# What is unchanged, and errors


def test_model_and_images_are_unchanged():
    model, x = network().train(), batch(6)
    before, buffers = x.clone(), {name: b.clone() for name, b in model.named_buffers()}
    x_adv = DeepFool()(model, x, torch.zeros(6, dtype=torch.int64))
    assert x.equal(before)
    assert not x_adv.requires_grad
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(buffers[name].equal(b) for name, b in model.named_buffers())


def test_memory_formats():
    model, x = network(), batch(6)
    found = DeepFool().distances(model, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, DeepFool().distances(model, x), rtol=1e-4, atol=1e-6)
    spread = torch.stack([x, x], dim=1)[:, 0]
    assert not spread.is_contiguous()
    torch.testing.assert_close(DeepFool().distances(model, spread), found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"overshoot": -0.1}, "overshoot is -0.1"),
        ({"overshoot": math.inf}, "overshoot is inf"),
        ({"classes": 1}, "classes is 1"),
        ({"bn": "test"}, "batch-norm mode is 'test'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        DeepFool(**options)


def test_bad_inputs():
    model, x = network(), batch(3)
    for bad, y in ((x + 1, None), (x[:0], None), (x, torch.zeros(2, dtype=torch.int64)), (x, torch.zeros(3))):
        with pytest.raises(DataError):
            DeepFool()(model, bad, y)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(NonFiniteError):
        DeepFool()(model, x)


# The mean distance of a set


def test_robustness_distance_is_the_mean_over_a_set():
    model = network()
    images = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = model(images / 255).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 10
    data = ImageDataset(images, labels, tuple(map(str, range(10))), "made", "test")
    expected = DeepFool().distances(model, images / 255, labels)
    assert expected[::4].eq(0).all()
    rho = robustness_distance(model, data, device=CPU)
    assert rho == pytest.approx(expected.double().mean().item(), rel=1e-4)
    two = robustness_distance(model, data, device=CPU, attack=DeepFool(classes=2))
    assert two > 0
    assert two != rho
