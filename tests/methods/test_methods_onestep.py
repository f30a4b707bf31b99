"""One-step methods against their formulas, written down a second time in plain torch and float64."""

import io
import math

import pytest
import torch
from helpers.reference_attacks import (
    EPS,
    MODES,
    batch,
    check_in_threat_model,
    check_pass,
    gradient_at,
    gradients,
    mode,
    network,
    noise,
    norms_of,
    project,
    step,
)
from helpers.small_problems import NanGradient
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM, MSGD, UnsupportedOperationError, per_example_grad_norms
from pyengm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from pyengm.methods import DatasetSpec
from pyengm.methods.fgsm_rs import FGSMRS
from pyengm.methods.grad_align import GradAlign
from pyengm.methods.ssat import SSAT
from pyengm.ops import Key, Purpose
from pyengm.training.steps.train_step import train_step

both_norms = pytest.mark.parametrize("norm", EPS)


def examples(n=6):
    return DatasetSpec(torch.arange(n).flip(0) * 10 + 5, (1, 8, 8))


def cross_entropy(model, x_adv, y):
    return F.cross_entropy(model(x_adv), y, reduction="none")


# FGSM-RS


@both_norms
@pytest.mark.parametrize("bn", MODES)
def test_fgsm_rs_is_its_formula(norm, bn):
    model, twin, (x, y, key) = network(), network(), batch()
    before = x.clone()
    outcome = FGSMRS(EPS[norm], norm=norm, bn=bn)(model, x, y, key)
    start = project(x + noise(x, key, norm), x, norm)
    with mode(twin, bn):
        x_adv = step(start, gradient_at(twin, start, y), x, norm, 1.25 * EPS[norm])
    check_pass(outcome, cross_entropy(twin, x_adv, y), x_adv, model, twin)
    assert x.equal(before)
    check_in_threat_model(outcome.x_adv, x, norm)
    assert model.block1[1].num_batches_tracked == 4 + MODES[bn]


@both_norms
@pytest.mark.parametrize("given", [None, 0.07])
def test_adaptive_steps_shrink_with_the_average_gradient(norm, given):
    method, model, twin = FGSMRS(EPS[norm], given, norm=norm, adaptive=True), network(), network()
    method.prepare(examples())
    largest = given or {"linf": 16 / 255, "l2": 2 * EPS[norm]}[norm]
    average, seen = dict.fromkeys(range(6), 0.0), set()
    for epoch, members in enumerate(([0, 1, 2, 3, 4, 5], [4, 2], [5, 1, 2, 0], [0, 1, 3], [4, 5, 1])):
        x, y, _ = batch(seed=epoch)
        with torch.no_grad():
            for net in (model, twin):  # gradients from small to large
                net.head.weight *= [0.01, 10, 10, 10, 10][epoch]
        x, y, key = x[members], y[members], Key(3, epoch, torch.tensor(members) * 10 + 5)
        outcome = method(model, x, y, key)
        start = project(x + noise(x, key, norm), x, norm)
        g = gradient_at(twin, start, y)
        sizes = []
        for i, norm_of_g in zip(members, norms_of(g).flatten().tolist(), strict=True):
            average[i] = (average[i] + norm_of_g**2) / 2
            free = largest / (1 + math.sqrt(average[i]) / 1.28)
            sizes.append(min(max(free, largest / 4), 7 / 8 * largest))
            seen.add("low" if free < sizes[-1] else "high" if free > sizes[-1] else "between")
        x_adv = step(start, g, x, norm, torch.tensor(sizes, dtype=x.dtype).view(-1, 1, 1, 1))
        torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-7)  # the averages are kept in float32
        torch.testing.assert_close(outcome.losses, cross_entropy(twin, x_adv, y), rtol=1e-6, atol=1e-7)
        check_in_threat_model(outcome.x_adv, x, norm)
    assert seen == {"low", "between", "high"}


def test_adaptive_steps_need_the_images():
    method, model, (x, y, key) = FGSMRS(0.1, adaptive=True), network(), batch()
    with pytest.raises(ConfigError, match="prepare"):
        method(model, x, y, key)
    with pytest.raises(ConfigError, match="prepare"):
        method.load_state_dict({"v": {"index": torch.arange(6), "values": torch.zeros(6, 1, 1, 1)}})
    method.prepare(examples())
    with pytest.raises(ConfigError, match="key"):
        method(model, x, y)
    with pytest.raises(DataError, match="not among the 6"):
        method(model, x, y, Key(3, 0, torch.arange(6)))
    state = {"index": examples().index, "values": torch.zeros(6, 1, 1, 2)}
    with pytest.raises(CheckpointError, match="other images"):
        method.load_state_dict({"v": state})
    with pytest.raises(CheckpointError, match="0 of 6"):
        method.load_state_dict({"v": {"index": torch.arange(6) + 900, "values": torch.zeros(6, 1, 1, 1)}})
    with pytest.raises(CheckpointError, match="has no v"):
        method.load_state_dict({"values": torch.zeros(6, 1, 1, 1)})
    assert FGSMRS(0.1).state_dict() == {}
    FGSMRS(0.1).load_state_dict({})


@both_norms
def test_adaptive_steps_resume_from_a_saved_state(norm):
    def made():
        method = FGSMRS(EPS[norm], norm=norm, adaptive=True)
        method.prepare(examples())
        return method

    method, model = made(), network()
    optimizer = MSGD(model.parameters(), lr=0.01)
    for epoch in (0, 1):
        x, y, key = batch(epoch=epoch)
        train_step(method, model, optimizer, x, y, key)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored = made()
    restored.load_state_dict(torch.load(file, weights_only=True))
    twin = network()
    twin.load_state_dict(model.state_dict())
    x, y, key = batch(epoch=2)
    losses = [m(net, x, y, key).losses for m, net in ((method, model), (restored, twin), (made(), twin))]
    assert losses[0].equal(losses[1])
    assert not losses[0].equal(losses[2])  # the state matters
    assert method.v.values.equal(restored.v.values)


# SSAT


def shortened(model, x, x_adv, y, right, c):
    """Every example alone: the first of the points x + (k / c) (x_adv - x) that is misclassified, else the last."""
    found, positions = [], []
    for i in range(len(x)):
        position = 0
        if right[i]:
            position = c
            for k in reversed(range(1, c)):
                point = x[i] + (x_adv[i] - x[i]) * (k / c)
                if model(point[None]).argmax() != y[i]:
                    position = k
        found.append(x[i] + (x_adv[i] - x[i]) * (position / c))
        positions.append(position)
    return torch.stack(found), positions


def trained():
    """A network that classifies some of the images right, as SSAT changes only those."""
    model, (x, y, _) = network(), batch(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@both_norms
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_ssat_stops_where_the_model_is_first_wrong(norm, c):
    model, twin, (x, y, key) = trained(), trained(), batch(24)
    before, rows = x.clone(), []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    outcome = SSAT(EPS[norm], checkpoints=c, norm=norm)(model, x, y, key)
    handle.remove()
    start = project(x + noise(x, key, norm), x, norm)
    with mode(twin, "eval"):
        right = twin(start).argmax(dim=1) == y
        whole = step(start, gradient_at(twin, start, y), x, norm, 1.25 * EPS[norm])
        x_adv, positions = shortened(twin, x, whole, y, right, c)
    assert len(set(positions)) >= min(c + 1, 4), positions  # else the test shows nothing
    assert outcome.x_adv[~right].equal(x[~right])
    assert x.equal(before)
    check_pass(outcome, cross_entropy(twin, x_adv, y), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)
    # One pass of the attack and one for the losses; a test per checkpoint on those that are still right.
    tests = [sum(position >= k for position in positions) for k in range(1, c)]
    assert rows == [24, *(n for n in tests if n), 24]
    assert model.block1[1].num_batches_tracked - trained().block1[1].num_batches_tracked == 1


@both_norms
@pytest.mark.parametrize("bn", ["train", "batch_stats"])
def test_ssat_with_batch_statistics_tests_whole_batches(norm, bn):
    model, twin, (x, y, key) = trained(), trained(), batch(24)
    outcome = SSAT(EPS[norm], norm=norm, bn=bn)(model, x, y, key)
    start = project(x + noise(x, key, norm), x, norm)
    with mode(twin, bn):
        leaf = start.clone().requires_grad_()
        logits = twin(leaf)
        (g,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
        right, whole = logits.argmax(dim=1) == y, step(start, g, x, norm, 1.25 * EPS[norm])
        points = [x, x + (whole - x) / 3, x + (whole - x) * (2 / 3), whole]
        wrong = [~right, *(twin(point).argmax(dim=1) != y for point in points[1:3]), torch.ones_like(right)]
    first = torch.stack(wrong).int().argmax(dim=0)
    assert len(first.unique()) == 4  # else the test shows nothing
    x_adv = torch.stack([points[k][i] for i, k in enumerate(first.tolist())])
    check_pass(outcome, cross_entropy(twin, x_adv, y), x_adv, model, twin)


# GradAlign


def grad_align(model, x, y, key, norm, *, bn, weight, random_start, as_published):
    """Losses and images, with the clamp and the gradients as autograd has them and cosines example by example."""
    raw = x + noise(x, key, norm) if random_start else x.clone()

    def gradient(point, constant=False):
        leaf = point.clone().requires_grad_()
        inside = torch.max(torch.min(leaf, torch.ones(())), torch.zeros(())) if constant else leaf
        with mode(model, bn):
            loss = F.cross_entropy(model(inside), y, reduction="sum")
            (g,) = torch.autograd.grad(loss, leaf, create_graph=not constant)
        return g

    first = gradient(raw, constant=True) if as_published else gradient(project(raw, x, norm))
    x_adv = step(raw if as_published else project(raw, x, norm), first.detach(), x, norm, 1.25 * EPS[norm])
    losses = list(cross_entropy(model, x_adv, y))
    second = gradient(x + noise(x, key, norm, Purpose.SECOND))
    cosines = {}
    for i, (g, h) in enumerate(zip(first.flatten(1), second.flatten(1), strict=True)):
        if g.abs().max() > 0 and h.abs().max() > 0:
            cosines[i] = (g @ h) / ((g @ g) * (h @ h)).sqrt()
    for i, cosine in cosines.items():
        losses[i] = losses[i] + weight * len(x) / len(cosines) * (1 - cosine)
    return torch.stack(losses), x_adv.detach()


@pytest.mark.parametrize("bn", MODES)
@pytest.mark.parametrize(
    ("norm", "random_start", "as_published"),
    [("linf", False, False), ("linf", True, False), ("linf", False, True), ("linf", True, True), ("l2", True, False)],
)
def test_grad_align_is_its_formula(norm, bn, random_start, as_published):
    model, twin, (x, y, key) = network(), network(), batch()
    options = {"bn": bn, "weight": 3.0, "random_start": random_start, "as_published": as_published}
    before = x.clone()
    outcome = GradAlign(EPS[norm], norm=norm, **options)(model, x, y, key)
    expected, x_adv = grad_align(twin, x, y, key, norm, **options)
    check_pass(outcome, expected, x_adv, model, twin)
    assert x.equal(before)
    check_in_threat_model(outcome.x_adv, x, norm)
    assert model.block1[1].num_batches_tracked == 4 + 2 * MODES[bn]


class Dead(nn.Module):
    """A network without biases: at an image of zeros its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, bias=False), nn.Linear(144, 10, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize("as_published", [False, True])
def test_examples_without_a_gradient_are_left_out(as_published):
    torch.manual_seed(0)
    model, (x, y, key) = Dead().double(), batch()
    x[[1, 4]] = 0
    options = {"bn": "train", "weight": 2.0, "random_start": False, "as_published": as_published}
    outcome = GradAlign(0.1, **options)(model, x, y, key)
    expected, x_adv = grad_align(model, x, y, key, "linf", **options)
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-9, atol=1e-12)
    assert outcome.losses[[1, 4]].equal(cross_entropy(model, x_adv, y)[[1, 4]])
    for ours, theirs in zip(gradients(outcome.losses, model), gradients(expected, model), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-11)
    norms = per_example_grad_norms(GradAlign(0.1, **options)(model, x, y, key).losses, model.parameters())
    exact = per_example_grad_norms(GradAlign(0.1, **options)(model, x, y, key).losses, model.parameters(), "exact")
    torch.testing.assert_close(norms, exact, rtol=1e-9, atol=1e-12)
    all_dead = GradAlign(0.1, **options)(model, torch.zeros_like(x), y, key).losses
    assert all_dead.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(all_dead, model))


def test_published_weights_of_grad_align():
    published = {1: 0.027, 2: 0.036, 3: 0.047, 4: 0.063, 5: 0.084, 6: 0.112, 7: 0.150, 8: 0.200, 12: 0.632, 16: 2.0}
    for pixels, weight in published.items():
        assert GradAlign(pixels / 255).weight == pytest.approx(weight, abs=6e-4)
    assert GradAlign(0.3).weight == 2.0  # no explosion beyond what was studied
    assert GradAlign(8 / 255, weight=1.0).weight == 1.0


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("bn", MODES)
def test_engm_has_the_right_norms_on_the_double_backward_graph_or_refuses(norm, bn, as_published):
    """With batch norm the gradients g and h connect the examples through derivatives of derivatives."""
    model, method = network(norm), GradAlign(0.1, weight=3.0, bn=bn, as_published=as_published)
    assert method.info.double_backward
    for seed in (1, 2, 3):  # the first call finds and checks the structure of the graph, the others recall it
        x, y, key = batch(5, seed)
        losses = method(model, x, y, key).losses
        exact = per_example_grad_norms(losses, model.parameters(), norms="exact")
        if norm == "bn" and bn != "eval":
            with pytest.raises(UnsupportedOperationError, match='norms="exact"'):
                per_example_grad_norms(losses, model.parameters())
            continue
        # Where only the pass for the cross-entropy has batch statistics, norms are fitted on a few exact ones.
        tolerance = 1e-9 if norm == "gn" else 0.1
        torch.testing.assert_close(per_example_grad_norms(losses, model.parameters()), exact, rtol=tolerance, atol=0)
        start = [p.detach().clone() for p in model.parameters()]
        optimizer = ENGM(model.parameters(), lr=1.0, momentum=0.0, weight_decay=0.0, alpha=exact.median().item())
        ((outcome, used),) = train_step(method, model, optimizer, x, y, key)
        assert (used.weights < 1).any()
        assert outcome.losses.shape == (5,)
        if norm == "gn":
            weights = (exact.median() / exact).clamp(max=1)
            model.zero_grad()
            twin = network(norm)
            with torch.no_grad():
                for p, before in zip(twin.parameters(), start, strict=True):
                    p.copy_(before)
            expected = gradients(weights.detach() * method(twin, x, y, key).losses, twin)
            for p, before, g in zip(model.parameters(), start, expected, strict=True):
                torch.testing.assert_close(before - p, g, rtol=1e-7, atol=1e-11)


# All of them


def methods(norm):
    weight = 1.0 if norm == "l2" else None
    adaptive = FGSMRS(EPS[norm], norm=norm, adaptive=True)
    adaptive.prepare(examples())
    return [
        FGSMRS(EPS[norm], norm=norm),
        adaptive,
        SSAT(EPS[norm], norm=norm),
        GradAlign(EPS[norm], norm=norm, weight=weight),
    ]


@both_norms
@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
@pytest.mark.parametrize("which", range(4))
def test_train_step(norm, optimizer, which):
    method, model, (x, y, key) = methods(norm)[which], network("gn", torch.float32), batch(dtype=torch.float32)
    method.needs_input_grad = True
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer(model.parameters(), lr=0.1), x, y, key)
    assert outcome.x_adv.grad is not None
    assert outcome.x_adv.grad.abs().sum() > 0
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@both_norms
@pytest.mark.parametrize("which", range(4))
def test_layouts_and_anonymous_images(norm, which):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()
    x, y, key = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6), batch()[2]
    expected = methods(norm)[which](model, x, y, key)
    layouts = (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3))
    for same in (*layouts, x.clone().requires_grad_()):
        outcome = methods(norm)[which](model, same, y, key)
        torch.testing.assert_close(outcome.x_adv, expected.x_adv, rtol=0, atol=1e-9)
        torch.testing.assert_close(outcome.losses, expected.losses, rtol=1e-9, atol=1e-9)
    if which != 1:
        outcome = methods(norm)[which](model, x, y)
        check_in_threat_model(outcome.x_adv, x, norm)
        assert not outcome.x_adv.equal(expected.x_adv) or isinstance(methods(norm)[which], GradAlign)


@both_norms
def test_no_radius_no_perturbation(norm):
    model, (x, y, key) = network(), batch()
    adaptive = FGSMRS(0.0, norm=norm, adaptive=True)
    adaptive.prepare(examples())
    weight = 1.0 if norm == "l2" else None
    for method in (FGSMRS(0.0, norm=norm), adaptive, SSAT(0.0, norm=norm), GradAlign(0.0, norm=norm, weight=weight)):
        outcome = method(model, x, y, key)
        assert outcome.x_adv.equal(x)
        assert outcome.losses.isfinite().all()


@both_norms
@pytest.mark.parametrize("which", range(4))
def test_what_is_not_finite_raises(norm, which):
    x, y, key = batch()
    with pytest.raises(NonFiniteError, match="nan or infinite"):
        methods(norm)[which](NanGradient(), x, y, key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSMRS(-1), "eps"),
        (lambda: FGSMRS(0.1, -1), "step"),
        (lambda: FGSMRS(0.1, norm="l1"), "known norms"),
        (lambda: FGSMRS(0.1, bn="off"), "known modes"),
        (lambda: SSAT(-1), "eps"),
        (lambda: SSAT(0.1, math.inf), "step"),
        (lambda: SSAT(0.1, checkpoints=0), "checkpoints"),
        (lambda: SSAT(0.1, bn="off"), "known modes"),
        (lambda: GradAlign(-1), "eps"),
        (lambda: GradAlign(0.1, math.nan), "step"),
        (lambda: GradAlign(0.1, weight=-1), "weight"),
        (lambda: GradAlign(0.1, norm="l2"), "L-infinity"),
        (lambda: GradAlign(0.1, bn="off"), "known modes"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
