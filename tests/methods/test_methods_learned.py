"""NuAT, Sub-AT and FGSM-SDI, each against a plain transcription of its formulas."""

import copy
import math

import pytest
import torch
from helpers.small_problems import cnn4 as network
from helpers.small_problems import distances, images_and_labels, through_a_file, weights
from torch import nn
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.errors import CheckpointError, ConfigError, NonFiniteError
from pyengm.methods.base import DatasetSpec
from pyengm.methods.fgsm_sdi import FGSMSDI, Generator
from pyengm.methods.nuat import NuAT, polar_factor
from pyengm.methods.sub_at import SubAT, principal_components
from pyengm.models import build
from pyengm.ops import Key, Purpose, philox_uniform
from pyengm.optim import ENGM, MSGD, NENGM
from pyengm.training.steps.train_step import train_step

EPS = {"linf": 0.1, "l2": 0.5}
both_norms = pytest.mark.parametrize("norm", EPS)
EXAMPLES = DatasetSpec(torch.arange(24), (1, 8, 8), seed=3)


def batch(n=6, number=0, epoch=0, dtype=torch.float64):
    x, y = images_and_labels(n, number, dtype)
    return x, y, Key(3, epoch, torch.arange(n) + n * number)


def norms_of(t):
    return t.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def into_ball(delta, norm, eps):
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / norms_of(delta)).clamp(max=1)


def along(g, norm):
    return g.sign() if norm == "linf" else g / norms_of(g)


def gradient(point, loss):
    leaf = point.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def cross(model, y):
    return lambda point: F.cross_entropy(model(point), y, reduction="sum")


def same_buffers(model, twin):
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, dict(twin.named_buffers())[name], rtol=0, atol=1e-9)


def same_gradients(model, losses, twin, loss):
    losses.mean().backward()
    loss.backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)


# NuAT


def nuclear(matrix):
    return torch.linalg.matrix_norm(matrix, ord="nuc")


def nuat_weight(epoch, epochs, slope):
    weight = 0.0
    for done in range(epoch):  # as the authors' loop adds it up
        if done < epochs - 10:
            weight += slope / (epochs - 10)
    return weight


@both_norms
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize(("divisor", "by"), [(64, 64), (None, 6)])
def test_nuat_is_its_formula(norm, number, as_published, divisor, by):
    eps, epoch, model, twin, (x, y, key) = EPS[norm], 3, network(), network(), batch()
    before = x.clone()
    method = NuAT(eps, epochs=15, norm=norm, divisor=divisor, as_published=as_published)
    method.start_epoch(model, epoch)
    for _ in range(number):
        method.perturb(copy.deepcopy(model), x, y, key)  # the batches before
    outcome = method(model, x, y, key)
    weight = nuat_weight(epoch, 15, 4.5)
    assert method.weight == pytest.approx(weight)

    uniform = philox_uniform(key.index, (1, 8, 8), seed=3, purpose=Purpose.SIGN, epoch=0)
    start = eps / 2 * torch.where(uniform < 0.5, -1.0, 1.0).double()
    point = (x + (start if norm == "linf" else start / 8)).clamp(0, 1)  # 64 pixels
    reference = (twin if as_published else copy.deepcopy(twin))(x).detach()
    twin.eval()

    def ascended(point):
        logits = twin(point)
        loss = F.cross_entropy(logits, y)
        return loss + weight * nuclear(reference - logits) / by if number % 2 else loss

    delta = into_ball(point + eps * along(gradient(point, ascended), norm) - x, norm, eps)
    x_adv = (x + delta).clamp(0, 1)
    twin.train()
    natural, logits = twin(x), twin(x_adv)
    expected = F.cross_entropy(natural, y) + weight * nuclear(natural - logits) / by

    torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.logits, logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses.mean(), expected, rtol=1e-9, atol=0)
    assert outcome.losses.shape == (6,)
    assert distances(outcome.x_adv, x, norm).max() <= eps + 1e-12
    assert model.block1[1].num_batches_tracked == 2 + as_published
    assert x.equal(before)
    same_buffers(model, twin)
    same_gradients(model, outcome.losses, twin, expected)


@both_norms
def test_nuat2_is_its_formula(norm):
    eps, model, twin, (x, y, key) = EPS[norm], network(), network(), batch()
    method = NuAT(eps, steps=3, step_size=eps / 2, epochs=8, max_lambda=4.0, norm=norm, divisor=None)
    method.start_epoch(model, 2)
    outcome = method(model, x, y, key)
    uniform = philox_uniform(key.index, (1, 8, 8), seed=3, purpose=Purpose.SIGN, epoch=0)
    start = eps / 2 * torch.where(uniform < 0.5, -1.0, 1.0).double()
    point = (x + (start if norm == "linf" else start / 8)).clamp(0, 1)
    twin.eval()
    reference = twin(x).detach()
    for k in range(3):

        def ascended(point, k=k):
            logits = twin(point)
            return F.cross_entropy(logits, y) + (k % 2 == 0) * 1.0 * nuclear(reference - logits) / 6

        delta = point + eps / 2 * along(gradient(point, ascended), norm) - x
        point = (x + into_ball(delta, norm, eps)).clamp(0, 1)
    torch.testing.assert_close(outcome.x_adv, point, rtol=0, atol=1e-9)
    assert model.block1[1].num_batches_tracked == 2


def test_nuat_weight_over_the_epochs():
    method = NuAT(0.1, epochs=100)
    found = []
    for epoch in range(100):
        method.start_epoch(network(), epoch)
        found.append(method.weight)
        assert method.weight == pytest.approx(nuat_weight(epoch, 100, 4.5))
    assert found[0] == 0
    assert found[90] == found[99] == 4.5
    short = NuAT(0.1, epochs=5)
    short.start_epoch(network(), 4)
    assert short.weight == 4.5


def test_nuat_alternates_within_an_epoch():
    method, (x, y, key) = NuAT(0.1, epochs=15), batch()
    found = {}
    for epoch in (3, 4):
        method.start_epoch(None, epoch)
        found[epoch] = [method.perturb(network(), x, y, key) for _ in range(3)]
    for a, b, c in found.values():
        assert a.equal(c)
        assert not a.equal(b)
    assert found[3][0].equal(found[4][0])  # the cross-entropy alone, whatever the weight


@pytest.mark.parametrize(("n", "k"), [(6, 10), (12, 4), (1, 3)])
def test_polar_factor_is_the_gradient_of_the_nuclear_norm(n, k):
    torch.manual_seed(0)
    matrix = torch.randn(n, k, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(nuclear(matrix), matrix)
    torch.testing.assert_close(polar_factor(matrix.detach()), g, rtol=0, atol=1e-12)


def test_polar_factor_without_full_rank():
    assert polar_factor(torch.zeros(4, 3)).equal(torch.zeros(4, 3))
    a, b = torch.randn(5, 1), torch.randn(1, 4)
    torch.testing.assert_close(polar_factor(a @ b), (a / a.norm()) @ (b / b.norm()))
    with pytest.raises(NonFiniteError):
        polar_factor(torch.full((2, 2), torch.nan))


def test_nuat_state():
    states, ends = [], []
    for interrupted in (False, True):
        model, method = network(dtype=torch.float32), NuAT(0.1, epochs=15)
        optimizer = MSGD(model.parameters(), 0.05)
        method.start_epoch(model, 4)
        for number in range(5):
            x, y, key = batch(number=number, epoch=4, dtype=torch.float32)
            train_step(method, model, optimizer, x, y, key)
            if interrupted and number == 2:
                state = through_a_file(method.state_dict())
                method = NuAT(0.1, epochs=15)
                method.load_state_dict(state)
        states.append(method.state_dict())
        ends.append(weights(model))
    assert states[0] == states[1] == {"epoch": 4, "batches": 5}
    assert all(p.equal(ends[1][name]) for name, p in ends[0].items())


# Sub-AT


def sub_at_run(method, model, optimizer, epochs, batches=4, after=None):
    """Epochs of four batches of six images; `after` is called after every batch and may swap the method."""
    for epoch in range(epochs):
        method.start_epoch(model, epoch)
        for number in range(batches):
            x, y, key = batch(number=number, epoch=epoch, dtype=next(model.parameters()).dtype)
            ((outcome, _),) = train_step(method, model, optimizer, x, y, key)
            if after is not None:
                method = after(method, epoch, number, outcome, x) or method
        method.finish_epoch(model, {})
    return method


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@both_norms
@pytest.mark.parametrize("steps", [1, 2])
def test_sub_at_is_its_formula(norm, steps):
    eps, attack = EPS[norm], {"norm": norm, "bn": "train"}
    model, twin = network(), network()
    method = SubAT(eps, steps=steps, epochs=4, sampling_epochs=2, dimension=3, norm=norm)
    method.prepare(EXAMPLES)
    path = []
    sub_at_run(
        method,
        model,
        MSGD(model.parameters(), 0.05, 0.9, weight_decay=0.01),
        4,
        after=lambda method, epoch, number, outcome, x: path.append((flat(model), outcome.x_adv)),
    )

    step = 1.25 * eps if steps == 1 else eps / 4
    small, large = PGD(eps, step, steps, **attack), PGD(2 * eps, 2 * step, 1, **attack)
    first = copy.deepcopy(twin.state_dict())
    points, expected = [flat(twin)], []
    sgd = torch.optim.SGD(twin.parameters(), 0.05, 0.9, weight_decay=0.01)
    basis = None
    for epoch in range(4):
        if epoch == 2:
            matrix = torch.stack(points).float().double()
            basis = torch.linalg.svd(matrix - matrix.mean(0), full_matrices=False)[2][:3]
            twin.load_state_dict(first)
            sgd = torch.optim.SGD(twin.parameters(), 1.0, 0.9)
        for number in range(4):
            x, y, key = batch(number=number, epoch=epoch)
            x_adv = (large if epoch >= 2 and steps == 1 else small)(twin, x, y, key=key)
            sgd.zero_grad()
            F.cross_entropy(twin(x_adv), y).backward()
            if basis is not None:
                g = torch.cat([p.grad.flatten() for p in twin.parameters()])
                g, at = basis.T @ (basis @ g), 0
                for p in twin.parameters():
                    p.grad = g[at : at + p.numel()].view_as(p)
                    at += p.numel()
            sgd.step()
            expected.append((flat(twin), x_adv))
            if number in (0, 3):  # the middle of 24 images is within the second batch, and taken before it
                points.append(flat(twin))
    assert len(points) > 3
    for (ours, x_adv), (theirs, other) in zip(path[:8], expected[:8], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        torch.testing.assert_close(x_adv, other, rtol=0, atol=1e-9)
    # P is float32: a share of 1e-7 of each gradient, over eight steps at a learning rate of 1.
    start = flat(network())
    for (ours, _), (theirs, _) in zip(path[8:], expected[8:], strict=True):
        torch.testing.assert_close(ours - start, theirs - start, rtol=1e-4, atol=1e-5)
    assert (path[-1][0] - start).norm() > 0.01


def test_sub_at_restarts():
    model, fresh = network(), network()
    method = SubAT(0.1, steps=1, epochs=2, sampling_epochs=1)
    method.prepare(EXAMPLES)
    optimizer = MSGD(model.parameters(), 0.05)
    sub_at_run(method, model, optimizer, 1)
    assert not flat(model).equal(flat(fresh))
    assert len(method.snapshots) == 3
    method.start_epoch(model, 1)
    assert all(value.equal(fresh.state_dict()[name]) for name, value in model.state_dict().items())
    assert method.snapshots == []
    assert len(method.basis) == 2  # three points
    x, y, key = batch(epoch=1)
    train_step(method, model, optimizer, x, y, key)
    assert optimizer.param_groups[0]["lr"] == 1
    assert optimizer.param_groups[0]["weight_decay"] == 0
    for p in model.parameters():
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], p.new_zeros(p.shape), rtol=0, atol=10)
    moved = flat(model) - flat(fresh)
    gradients = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in model.parameters()])
    torch.testing.assert_close(moved, -gradients, rtol=0, atol=1e-9)  # no momentum of the first phase, no decay
    inside = method.basis.double()
    torch.testing.assert_close(moved, inside.T @ (inside @ moved), rtol=0, atol=1e-6)


def test_principal_components():
    torch.manual_seed(0)
    points = [torch.randn(50) + 7 for _ in range(9)]
    rows = principal_components(points, 4)
    matrix = torch.stack(points).double()
    expected = torch.linalg.svd(matrix - matrix.mean(0), full_matrices=False)[2][:4]
    assert rows.dtype == torch.float32
    torch.testing.assert_close((rows.double() @ expected.T).abs(), torch.eye(4).double(), rtol=0, atol=1e-5)
    assert principal_components(points, 100).shape == (8, 50)
    line = [torch.arange(5.0), torch.arange(5.0) * 2, torch.arange(5.0) * 4]
    assert principal_components(line, 3).shape == (1, 5)
    assert principal_components([torch.ones(5)] * 3, 3).shape == (0, 5)


def test_principal_components_in_parts(monkeypatch):
    points = [torch.randn(50) for _ in range(6)]
    whole = principal_components(points, 3)
    monkeypatch.setattr("pyengm.methods.sub_at.COLUMNS", 7)
    parts = principal_components(points, 3)
    torch.testing.assert_close((whole @ parts.T).abs(), torch.eye(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("at", [(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 3), (3, 1)])
def test_sub_at_state(at):
    ends = []
    for stop in (None, at):
        model = network(dtype=torch.float32)
        optimizer = MSGD(model.parameters(), 0.05)

        def make():
            method = SubAT(0.1, steps=1, epochs=4, sampling_epochs=2, dimension=3)
            method.prepare(EXAMPLES)
            return method

        def resume(method, epoch, number, outcome, x, stop=stop, make=make):
            if (epoch, number) != stop:
                return None
            fresh = make()
            fresh.load_state_dict(through_a_file(method.state_dict()))
            return fresh

        sub_at_run(make(), model, optimizer, 4, after=resume)
        ends.append(model.state_dict())
    assert all(value.equal(ends[1][name]) for name, value in ends[0].items())


def test_sub_at_defaults():
    slow, fast = SubAT(0.08, epochs=140), SubAT(0.08, steps=1, epochs=105)
    assert (slow.sampling_epochs, slow.dimension, slow.attack.step_size, slow.attack.steps) == (100, 100, 0.02, 10)
    assert (fast.sampling_epochs, fast.dimension, fast.attack.step_size, fast.attack.steps) == (65, 80, 0.1, 1)
    assert slow.later is slow.attack
    assert (fast.later.threat.eps, fast.later.step_size, fast.threat.eps) == (0.16, 0.2, 0.08)
    assert slow.attack.bn == fast.later.bn == "train"
    assert SubAT(0.1, epochs=2).sampling_epochs == 1


def test_sub_at_misused():
    model, (x, y, key) = network(), batch()
    method = SubAT(0.1, epochs=2)
    with pytest.raises(ConfigError, match="call prepare"):
        method(model, x, y, key)
    method.prepare(EXAMPLES)
    with pytest.raises(ConfigError, match="start_epoch"):
        method(model, x, y, key)
    with pytest.raises(ConfigError, match="before epoch 0"):
        method.start_epoch(model, 1)
    sub_at_run(method, model, MSGD(model.parameters(), 0.05), 1)
    state = through_a_file(method.state_dict())
    method.start_epoch(model, 1)
    other = build("cnn4", width=3, image_size=8, in_channels=1, norm_layer="bn").double()
    other(x).sum().backward()
    with pytest.raises(ConfigError, match="weights, but"):
        method.before_step(other, MSGD(other.parameters()))
    state["snapshots"][1] = state["snapshots"][1][1:]
    with pytest.raises(CheckpointError, match="one model"):
        method.load_state_dict(state)


# FGSM-SDI


def twin_generator(method):
    """A copy of the generator, with an optimiser of its own."""
    generator = copy.deepcopy(method.generator)
    return generator, torch.optim.Adam(generator.parameters(), 1e-3, weight_decay=5e-4)


def sdi_delta(model, generator, known, x, y, norm, eps, step):
    z = eps * generator(known).double() if norm == "linf" else eps / 8 * generator(known).double()
    g = gradient(x + z, cross(model, y))
    return into_ball(z + into_ball(step * along(g, norm), norm, eps), norm, eps)


def smoothed(logits, y, smoothing):
    k = logits.shape[1]
    labels = torch.full_like(logits, smoothing / (k - 1))
    labels[torch.arange(len(y)), y] = 1 - smoothing
    return -(labels * logits.log_softmax(1)).sum(1)


@both_norms
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("bn", ["train", "eval"])
def test_sdi_is_its_formula(norm, number, as_published, bn):
    eps, model, twin, (x, y, key) = EPS[norm], network(), network(), batch()
    before = x.clone()
    method = FGSMSDI(eps, 0.7 * eps, norm=norm, bn=bn, generator_interval=2, smoothing=0.3, as_published=as_published)
    method.prepare(EXAMPLES)
    for _ in range(number):
        method.perturb(network(), x, y, key)  # the batches before
    generator, adam = twin_generator(method)
    adam.load_state_dict(
        copy.deepcopy(method.extra_state()["adam"]) | {"param_groups": adam.state_dict()["param_groups"]}
    )
    outcome = method(model, x, y, key)

    twin.train(bn == "train")
    first = along(gradient(x, cross(twin, y)), norm) * (1 if norm == "linf" else 8)
    known = torch.cat([x, first], dim=1).float()
    if number % 2 == 0:
        generator.train()
        x_adv = x + sdi_delta(twin, generator, known, x, y, norm, eps, 0.7 * eps)
        x_adv = x_adv if as_published else x_adv.clamp(0, 1)
        adam.zero_grad()
        (-smoothed(twin(x_adv), y, 0.3).mean()).backward()
        adam.step()
        twin.zero_grad()
    generator.eval()
    with torch.no_grad():
        for p, q in zip(method.generator.parameters(), generator.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)  # float32, of parameters up to 1
        generator.load_state_dict(method.generator.state_dict())
    x_adv = x + sdi_delta(twin, generator, known, x, y, norm, eps, 0.7 * eps).detach()
    x_adv = x_adv if as_published else x_adv.clamp(0, 1)
    expected = smoothed(twin.train()(x_adv), y, 0.3)

    torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-9, atol=1e-9)
    assert distances(outcome.x_adv, x, norm).max() <= eps + 1e-9
    assert as_published or (outcome.x_adv.min() >= 0 and outcome.x_adv.max() <= 1)
    passes = (5 if number % 2 == 0 else 3) if bn == "train" else 1
    assert model.block1[1].num_batches_tracked == passes
    assert x.equal(before)
    same_buffers(model, twin)
    same_gradients(model, outcome.losses, twin, expected.mean())


def test_sdi_generator_learns_to_fool():
    model, (x, y, key) = network().requires_grad_(), batch(32)
    method = FGSMSDI(
        0.1, 0.0, generator_interval=1, generator_lr=0.01
    )  # no second step: what the generator does is all there is
    method.prepare(EXAMPLES)
    losses = []
    for _ in range(12):
        x_adv = method.perturb(model, x, y, key)
        with torch.no_grad():
            losses.append(F.cross_entropy(model.eval()(x_adv), y).item())
        model.train()
    assert losses[-1] > losses[0]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is None for p in method.generator.parameters())


def test_sdi_generator_begins_with_the_seed_and_draws_nothing_from_torch():
    x, y, key = batch()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    prepared, lazy, other = FGSMSDI(0.1), FGSMSDI(0.1, generator_lr=0.0), FGSMSDI(0.1)
    prepared.prepare(EXAMPLES)
    other.prepare(DatasetSpec(torch.arange(24), (1, 8, 8), seed=4))
    model = network()
    torch.set_rng_state(before)
    lazy(model, x, y, key)
    assert torch.get_rng_state().equal(before)
    first, second = prepared.generator.state_dict(), other.generator.state_dict()
    assert lazy.generator.first.weight.equal(first["first.weight"])
    assert not second["first.weight"].equal(first["first.weight"])
    prepared.prepare(EXAMPLES)
    assert all(value.equal(first[name]) for name, value in prepared.generator.state_dict().items())


def test_sdi_state():
    ends = []
    for stop in (None, 0, 2):
        model = network(dtype=torch.float32)
        optimizer, method = MSGD(model.parameters(), 0.05), FGSMSDI(0.1, generator_interval=2)
        for epoch in range(2):
            method.start_epoch(model, epoch)
            for number in range(4):
                x, y, key = batch(number=number, epoch=epoch, dtype=torch.float32)
                train_step(method, model, optimizer, x, y, key)
                if number == stop:
                    state = through_a_file(method.state_dict())
                    method = FGSMSDI(0.1, generator_interval=2)
                    if epoch == 1:
                        method.prepare(EXAMPLES)
                    method.load_state_dict(state)
        ends.append(model.state_dict() | method.generator.state_dict())
    for end in ends[1:]:
        assert all(value.equal(end[name]) for name, value in ends[0].items())
    unused = FGSMSDI(0.1)
    unused.load_state_dict(through_a_file(FGSMSDI(0.1).state_dict()))
    assert unused.generator is None


def test_sdi_state_of_other_images():
    method, other = FGSMSDI(0.1), FGSMSDI(0.1)
    method.prepare(EXAMPLES)
    other.prepare(DatasetSpec(torch.arange(24), (3, 8, 8)))
    with pytest.raises(CheckpointError, match="other images"):
        other.load_state_dict(method.state_dict())


def test_sdi_generator():
    torch.manual_seed(0)
    generator = Generator(3).eval()
    x = torch.randn(2, 6, 8, 8)
    out = generator(x)
    assert out.shape == (2, 3, 8, 8)
    assert out.abs().max() < 1
    # In evaluation mode, right after the start, its norms divide by sqrt(1 + eps).
    h = F.conv2d(x, generator.first.weight, padding=1).div(math.sqrt(1.001)).relu()
    r = h
    for convolution in (generator.residual[2], generator.residual[5]):
        r = F.conv2d(F.leaky_relu(r / math.sqrt(1 + 1e-5), 0.25), convolution.weight, convolution.bias, padding=1)
    h = F.conv2d((h + r) / math.sqrt(1 + 1e-5), generator.last.weight, generator.last.bias, padding=1).tanh()
    torch.testing.assert_close(out, h, rtol=1e-4, atol=1e-5)


# All of them

METHODS = {
    "nuat": lambda eps=0.1, **options: NuAT(eps, epochs=20, **options),
    "nuat2": lambda eps=0.1, **options: NuAT(eps, steps=2, epochs=20, **options),
    "sub_at": lambda eps=0.1, **options: SubAT(eps, steps=2, epochs=20, sampling_epochs=4, **options),
    "fgsm_sdi": lambda eps=0.1, **options: FGSMSDI(eps, **options),
}
all_methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


@all_methods
@pytest.mark.parametrize("kind", [MSGD, ENGM, NENGM])
def test_methods_train(make, kind):
    model, method = network(dtype=torch.float32), make()
    optimizer, start = kind(model.parameters(), 0.05), weights(model)
    method.needs_input_grad = kind.info.needs_inputs
    method.prepare(EXAMPLES)
    for epoch in range(6):
        method.start_epoch(model, epoch)
        for number in range(4):
            x, y, key = batch(number=number, epoch=epoch, dtype=torch.float32)
            ((outcome, _),) = train_step(method, model, optimizer, x, y, key)
            assert outcome.losses.shape == (6,)
            assert outcome.x_adv.requires_grad == kind.info.needs_inputs
        method.finish_epoch(model, {})
    assert method.single_pass
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.isfinite().all() for p in model.parameters())
    assert not any(p.detach().equal(start[name]) for name, p in model.named_parameters())


@all_methods
@both_norms
def test_without_a_ball(make, norm):
    model, method, (x, y, key) = network(), make(0.0, norm=norm), batch()
    method.prepare(EXAMPLES)
    for epoch in range(2):
        method.start_epoch(model, epoch)
        outcome = method(model, x, y, key)
        assert outcome.x_adv.equal(x)
        outcome.losses.mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@all_methods
@both_norms
def test_images_in_any_layout(make, norm):
    (x, y, key), found = batch(), []
    turned, last = x.transpose(2, 3).contiguous().transpose(2, 3), x.contiguous(memory_format=torch.channels_last)
    for view in (x, turned, last):
        method = make(EPS[norm], norm=norm)
        method.prepare(EXAMPLES)
        method.start_epoch(network(), 0)
        found.append(method.perturb(network(), view, y, key))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x.flatten(1)[:, :10] * torch.nan


@all_methods
def test_models_that_are_not_finite(make):
    (x, y, key), method = batch(), make()
    method.prepare(EXAMPLES)
    method.start_epoch(Broken(), 0)
    with pytest.raises(NonFiniteError):
        method(Broken(), x, y, key)


class Passes(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the passes of a network's first layer: forward, backward for the images, backward with the weights."""

    def __init__(self, weight):
        super().__init__()
        self.of, self.forward, self.inputs, self.weights = weight.data_ptr(), 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "aten::convolution":
            self.forward += args[1].data_ptr() == self.of
        if func.name() == "aten::convolution_backward" and args[2].data_ptr() == self.of:
            self.weights += args[-1][1]
            self.inputs += not args[-1][1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "costs"),
    [
        ("nuat", [(3, 1, 2), (4, 1, 2), (3, 1, 2)]),
        ("nuat2", [(5, 2, 2), (5, 2, 2), (5, 2, 2)]),
        ("sub_at", [(3, 2, 1), (3, 2, 1), (3, 2, 1)]),
        ("fgsm_sdi", [(5, 4, 1), (3, 2, 1), (3, 2, 1)]),
    ],
)
def test_cost(name, costs):
    model, method, (x, y, key) = network(), METHODS[name](), batch()
    method.prepare(EXAMPLES)
    method.start_epoch(model, 0)
    if name.startswith("nuat"):
        method.start_epoch(model, 2)
    for cost in costs:
        with Passes(model.block1[0].weight) as seen:
            method(model, x, y, key).losses.mean().backward()
        assert (seen.forward, seen.inputs, seen.weights) == cost


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NuAT(-0.1, epochs=3), "eps"),
        (lambda: NuAT(0.1, -1.0, epochs=3), "step"),
        (lambda: NuAT(0.1, steps=0, epochs=3), "steps"),
        (lambda: NuAT(0.1, epochs=0), "epochs"),
        (lambda: NuAT(0.1, epochs=3, max_lambda=-1.0), "max_lambda"),
        (lambda: NuAT(0.1, epochs=3, divisor=0), "divisor is 0"),
        (lambda: NuAT(0.1, epochs=3, bn="off"), "known modes"),
        (lambda: NuAT(0.1, epochs=3, norm="l1"), "known norms"),
        (lambda: SubAT(-0.1, epochs=3), "eps"),
        (lambda: SubAT(0.1, epochs=1), "at least one more"),
        (lambda: SubAT(0.1, epochs=3, sampling_epochs=0), "sampling_epochs"),
        (lambda: SubAT(0.1, epochs=3, sampling_epochs=3), "sampling_epochs"),
        (lambda: SubAT(0.1, epochs=3, dimension=0), "dimension is 0"),
        (lambda: SubAT(0.1, epochs=3, bn="off"), "known modes"),
        (lambda: FGSMSDI(float("nan")), "eps"),
        (lambda: FGSMSDI(0.1, float("inf")), "step_size is inf"),
        (lambda: FGSMSDI(0.1, bn="off"), "known modes"),
        (lambda: FGSMSDI(0.1, generator_interval=0), "generator_interval"),
        (lambda: FGSMSDI(0.1, smoothing=1.0), "smoothing"),
        (lambda: FGSMSDI(0.1, generator_lr=-1.0), "generator_lr"),
        (lambda: FGSMSDI(0.1, smoothing=0.95)(network(), *batch()), "less than 0.9 for 10 classes"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
