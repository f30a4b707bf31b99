"""Dynamic, FGSM-then-PGD and curriculum training against their formulas, written down a second time in float64."""

import math

import pytest
import torch
from helpers.reference_attacks import (
    EPS,
    batch,
    check_in_threat_model,
    check_pass,
    fosc,
    gradient_at,
    network,
    noise,
    project,
    step,
)
from helpers.small_problems import NanGradient, through_a_file
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.errors import CheckpointError, ConfigError, NonFiniteError
from pyengm.methods.awp import AWP
from pyengm.methods.curriculum import Curriculum
from pyengm.methods.dynamic import Dynamic, c_max_from
from pyengm.methods.fgsm_then_pgd import FGSMThenPGD
from pyengm.ops import Key, Purpose, philox_uniform
from pyengm.training.steps.train_step import train_step

both_norms = pytest.mark.parametrize("norm", EPS)


def controlled(model, x, y, start, origin, norm, steps, threshold):
    """PGD with steps of eps / 4 in eval mode, each example alone until its FOSC is at most the threshold."""
    found, taken = [], []
    for one, label, x_adv, center in zip(*(t.split(1) for t in (x, y, start, origin)), strict=True):
        for k in range(steps):
            g = gradient_at(model.eval(), x_adv, label)
            if k > 0 and fosc(x_adv, g, center, norm).item() <= threshold:
                break
            x_adv = step(x_adv, g, one, norm, EPS[norm] / 4)
            count = k + 1
        found.append(x_adv)
        taken.append(count)
    return torch.cat(found), taken


# Dynamic


def typical(norm, published):
    """A c_max for which some of 12 images stop early in epoch 2 of 12 and some do not."""
    x, y, key = batch(12)
    start = x + noise(x, key, norm)
    origin = start if published else x
    start = start if published else project(start, x, norm)
    halfway, _ = controlled(network(), x, y, start, origin, norm, 3, -math.inf)
    middle = fosc(halfway, gradient_at(network().eval(), halfway, y), origin, norm).sort().values[5:7].mean()
    return middle.item() / (1 - 2 / 10)


@both_norms
@pytest.mark.parametrize("published", [False, True])
def test_dynamic_is_its_formula(norm, published):
    c_max, model, twin, (x, y, key) = typical(norm, published), network(), network(), batch(12, epoch=2)
    before, rows = x.clone(), []
    method = Dynamic(EPS[norm], steps=6, epochs=12, c_max=c_max, norm=norm, as_published=published)
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    outcome = method(model, x, y, key)
    handle.remove()
    start = x + noise(x, key, norm)
    origin = start if published else x
    start = start if published else project(start, x, norm)
    x_adv, taken = controlled(twin, x, y, start, origin, norm, 6, c_max * (1 - 2 / 10))
    assert min(taken) < max(taken) == 6, taken
    weights = F.cross_entropy(twin(x_adv), y, reduction="none").detach() if published else 1.0  # in eval mode
    losses = F.cross_entropy(twin.train()(x_adv), y, reduction="none")
    check_pass(outcome, weights * losses, x_adv, model, twin)
    assert x.equal(before)
    check_in_threat_model(outcome.x_adv, x, norm)
    assert model.block1[1].num_batches_tracked == 4
    assert sum(rows) == sum(min(count + 1, 6) for count in taken) + 12 * (1 + published)


def test_dynamic_weighs_from_the_second_epoch_on():
    x, y, _ = batch()
    method = Dynamic(0.1, steps=2, epochs=12, as_published=True)
    for epoch in (1, 0, 5):  # in any order, as keys have it
        outcome = method(network(), x, y, Key(3, epoch, torch.arange(6)))
        entropy = F.cross_entropy(outcome.logits, y, reduction="none")
        assert outcome.losses.equal(entropy) == (epoch == 0)


def test_thresholds_fall_to_zero():
    method = Dynamic(8 / 255, epochs=120)
    assert [method.threshold(t) for t in (0, 50, 100, 119)] == pytest.approx([0.5, 0.25, 0.0, 0.0])
    assert (method.attack.step_size, method.attack.steps, method.attack.bn) == (2 / 255, 10, "eval")
    assert Dynamic(0.3, epochs=50, decay_epochs=40, c_max=2.0).threshold(10) == pytest.approx(1.5)
    assert Dynamic(0.3, epochs=1).threshold(0) == 0.5


@both_norms
def test_c_max_is_the_mean_fosc_of_fgsm(norm):
    model, (x, y, _) = network(), batch()
    estimate = c_max_from(model, x, y, EPS[norm], norm=norm)
    x_adv = step(x, gradient_at(model.eval(), x, y), x, norm, EPS[norm])
    assert estimate == pytest.approx(fosc(x_adv, gradient_at(model, x_adv, y), x, norm).mean().item(), rel=1e-9)
    assert estimate > 0


# FGSM, then PGD


@both_norms
@pytest.mark.parametrize("epoch", [0, 19, 20])
def test_fgsm_comes_before_pgd(norm, epoch):
    model, twin, (x, y, key) = network(), network(), batch(epoch=epoch)
    outcome = FGSMThenPGD(EPS[norm], steps=3, norm=norm)(model, x, y, key)
    twin.eval()
    if epoch < 20:
        x_adv = step(x, gradient_at(twin, x, y), x, norm, EPS[norm])
    else:
        x_adv = project(x + noise(x, key, norm), x, norm)
        for _ in range(3):
            x_adv = step(x_adv, gradient_at(twin, x_adv, y), x, norm, EPS[norm] / 4)
    check_pass(outcome, F.cross_entropy(twin.train()(x_adv), y, reduction="none"), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


def epoch_seen(method):
    """The epoch by which a method attacks images without a key."""
    x, y, _ = batch()
    method(network(), x, y)
    return method.epoch


@pytest.mark.parametrize("make", [lambda: FGSMThenPGD(0.1, steps=2), lambda: Dynamic(0.1, steps=2, epochs=9)])
def test_the_epoch_comes_from_the_key_or_from_the_hook(make):
    method, (x, y, key) = make(), batch(epoch=4)
    assert epoch_seen(method) == 0
    method.start_epoch(network(), 3)
    assert epoch_seen(method) == 3
    method(network(), x, y, key)
    assert epoch_seen(method) == 4
    restored = make()
    restored.load_state_dict(through_a_file(method.state_dict()))
    assert epoch_seen(restored) == 4
    torch.manual_seed(0)
    first = method(network(), x, y).x_adv
    torch.manual_seed(0)
    assert restored(network(), x, y).x_adv.equal(first)


# Curriculum


def curriculum_attack(model, x, y, key, k, norm, given=None):
    """PGD of k steps; the size of the step, unless given, is one draw for the attack's first image."""
    if k == 0:
        return x.clone()
    draw = philox_uniform(key.index, (), seed=key.seed, purpose=Purpose.STEP, epoch=key.epoch, draw=k)[0].item()
    size = given or 2 * EPS[norm] / k * (1 + draw * (10 / k - 1))
    x_adv = project(x + noise(x, key, norm), x, norm)
    for _ in range(k):
        x_adv = step(x_adv, gradient_at(model, x_adv, y), x, norm, size)
    return x_adv


@both_norms
@pytest.mark.parametrize("k", [0, 1, 3, 12])
@pytest.mark.parametrize("given", [None, 0.03])
def test_curriculum_attacks_with_k_steps(norm, k, given):
    model, twin, (x, y, key) = network(), network(), batch()
    before, method = x.clone(), Curriculum(EPS[norm], given, 12, norm=norm)
    method.k = k
    outcome = method(model, x, y, key)
    x_adv = curriculum_attack(twin.eval(), x, y, key, k, norm, given)
    check_pass(outcome, F.cross_entropy(twin.train()(x_adv), y, reduction="none"), x_adv, model, twin)
    assert x.equal(before)
    assert outcome.x_adv.data_ptr() != x.data_ptr()
    check_in_threat_model(outcome.x_adv, x, norm)


@both_norms
@pytest.mark.parametrize(("n", "k"), [(11, 2), (12, 3), (6, 0), (2, 3), (3, 3)])
def test_batch_mixing_attacks_every_part_with_its_own_number_of_steps(norm, n, k):
    model, twin, (x, y, key) = network(), network(), batch(n)
    method = Curriculum(EPS[norm], steps=5, batch_mixing=True, norm=norm)
    method.k = k
    outcome = method(model, x, y, key)
    parts, share = [], n // (k + 1)
    for j in range(k + 1):
        part = slice(j * share, (j + 1) * share if j < k else n)
        if len(x[part]):
            own = Key(key.seed, key.epoch, key.index[part])
            parts.append(curriculum_attack(twin, x[part], y[part], own, j, norm))  # in training mode
    x_adv = torch.cat(parts)
    assert len(x_adv) == n
    check_pass(outcome, F.cross_entropy(twin(x_adv), y, reduction="none"), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


def test_the_size_of_steps_is_drawn_for_every_attack():
    method = Curriculum(0.1)
    index = torch.arange(400)
    for k in (1, 2, 7):
        sizes = torch.tensor([method._draw_step(Key(0, e, index[i:]), k) for e in (0, 1) for i in range(0, 400, 4)])
        low, high = 0.2 / k, 2 / k**2
        assert low <= sizes.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < sizes.max() <= high
        assert sizes.mean().item() == pytest.approx((low + high) / 2, abs=0.08 * (high - low))  # 4 standard errors


def test_without_held_out_images_strength_grows_with_training_accuracy():
    method, model = Curriculum(0.1, steps=3), network()
    strengths = []
    for accuracy in (0.5, 0.95, 0.951, 0.99, 0.2, 0.96, 0.97):
        method.finish_epoch(model, {"train_robust": accuracy})
        strengths.append(method.k)
    assert strengths == [0, 0, 1, 2, 2, 3, 3]  # at most `steps`
    assert not method.best_weights


def marked(model, value):
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
        model.block1[1].running_mean.fill_(value)
    return model


def mark(model):
    assert all((p == model.head.bias[0]).all() for p in model.parameters())
    assert (model.block1[1].running_mean == model.head.bias[0]).all()
    return model.head.bias[0].item()


def run(method, model, epochs):
    """Epoch after epoch with weights of that number; the strength and the weights' number after each."""
    seen = []
    for number, natural, robust, train in epochs:
        metrics = {"train_robust": train, "robust": robust} | ({} if natural is None else {"natural": natural})
        method.finish_epoch(marked(model, number), metrics)
        seen.append((method.k, mark(model)))
    return seen


def test_with_held_out_images_strength_grows_once_the_best_weights_stay():
    method, model = Curriculum(0.1, steps=2, patience=2), network()
    epochs = [
        (1, 0.6, 0.10, 0.99),  # k = 0 is judged by natural accuracy
        (2, 0.7, 0.05, 0.99),  # best
        (3, 0.6, 0.30, 0.99),
        (4, 0.7, 0.00, 0.90),  # no better for two epochs, but not yet fitted
        (5, 0.6, 0.00, 0.91),  # on to k = 1, with the weights of epoch 2
        (6, 0.9, 0.05, 0.99),  # k = 1 is judged by robust accuracy, and starts from that of epoch 2
        (7, 0.1, 0.06, 0.10),  # best
        (8, 0.9, 0.06, 0.99),
        (9, 0.9, 0.05, 0.99),  # on to k = 2, with the weights of epoch 7
        (10, 0.9, 0.00, 0.99),
        (11, 0.9, 0.00, 0.99),
        (12, 0.9, 0.00, 0.99),  # no further
    ]
    seen = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 6), (1, 7), (1, 8), (2, 7), (2, 10), (2, 11), (2, 12)]
    assert run(method, model, epochs) == seen
    assert Curriculum(0.1).patience == 10


def test_held_out_images_without_natural_accuracy():
    method = Curriculum(0.1, patience=1)
    assert run(method, network(), [(1, None, 0.2, 0.99), (2, None, 0.1, 0.99)]) == [(0, 1), (1, 1)]


def test_curriculum_resumes_from_a_saved_state():
    def made():
        return Curriculum(0.1, steps=3, patience=2)

    method, model = made(), network()
    run(method, model, [(1, 0.5, 0.1, 0.99), (2, 0.6, 0.2, 0.99), (3, 0.5, 0.2, 0.99)])
    restored, twin = made(), network()
    restored.load_state_dict(through_a_file(method.state_dict()))
    rest = [(4, 0.5, 0.1, 0.99), (5, 0.5, 0.3, 0.99), (6, 0.5, 0.2, 0.99), (7, 0.1, 0.2, 0.99), (8, 0.1, 0.9, 0.1)]
    expected = run(method, model, rest)
    assert run(restored, twin, rest) == expected
    assert expected[0] == (1, 2)  # the saved weights matter
    x, y, key = batch()
    assert method(network(), x, y, key).losses.equal(restored(network(), x, y, key).losses)
    best = restored.best_weights["head.bias"].clone()
    marked(twin, 77)
    assert restored.best_weights["head.bias"].equal(best)  # a copy
    restored.load_state_dict(made().state_dict())
    assert (restored.k, restored.best_weights) == (0, {})
    method.k = 3
    with pytest.raises(CheckpointError, match="k = 3"):
        Curriculum(0.1, steps=2).load_state_dict(method.state_dict())


# All of them


def methods(norm, eps=None):
    eps = EPS[norm] if eps is None else eps
    curriculum, mixed = Curriculum(eps, norm=norm), Curriculum(eps, norm=norm, batch_mixing=True)
    curriculum.k = mixed.k = 2
    dynamic = [Dynamic(eps, steps=3, epochs=9, norm=norm, as_published=published) for published in (False, True)]
    return [*dynamic, FGSMThenPGD(eps, steps=3, fgsm_epochs=2, norm=norm), curriculum, mixed]


@both_norms
@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("awp", [False, True])
def test_train_step(norm, optimizer, which, awp):
    method, model, (x, y, key) = methods(norm)[which], network("gn", torch.float32), batch(dtype=torch.float32)
    method = AWP(method, 0.01) if awp else method
    method.needs_input_grad = True
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer(model.parameters(), lr=0.1), x, y, key)
    assert outcome.x_adv.grad.abs().sum() > 0
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@both_norms
@pytest.mark.parametrize("which", range(5))
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
    x_adv = methods(norm)[which](model, x, y).x_adv
    check_in_threat_model(x_adv, x, norm)
    assert not x_adv.equal(expected.x_adv)


@both_norms
@pytest.mark.parametrize("which", range(5))
def test_no_radius_no_perturbation(norm, which):
    x, y, key = batch()
    outcome = methods(norm, 0.0)[which](network(), x, y, key)
    assert outcome.x_adv.equal(x)
    assert outcome.losses.isfinite().all()


@both_norms
@pytest.mark.parametrize("which", range(5))
def test_what_is_not_finite_raises(norm, which):
    x, y, key = batch()
    with pytest.raises(NonFiniteError, match="nan or infinite"):
        methods(norm)[which](NanGradient(), x, y, key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dynamic(-1, epochs=3), "eps"),
        (lambda: Dynamic(0.1, -1, epochs=3), "step"),
        (lambda: Dynamic(0.1, steps=0, epochs=3), "steps"),
        (lambda: Dynamic(0.1, epochs=0), "epochs"),
        (lambda: Dynamic(0.1, epochs=3, decay_epochs=0), "decay_epochs"),
        (lambda: Dynamic(0.1, epochs=3, c_max=-1), "c_max"),
        (lambda: Dynamic(0.1, epochs=3, c_max=math.nan), "c_max"),
        (lambda: Dynamic(0.1, epochs=3, norm="l1"), "known norms"),
        (lambda: Dynamic(0.1, epochs=3, bn="off"), "known modes"),
        (lambda: FGSMThenPGD(0.1, fgsm_epochs=-1), "fgsm_epochs"),
        (lambda: FGSMThenPGD(-0.1), "eps"),
        (lambda: FGSMThenPGD(0.1, steps=0), "steps"),
        (lambda: FGSMThenPGD(0.1, bn="off"), "known modes"),
        (lambda: Curriculum(-1), "eps"),
        (lambda: Curriculum(0.1, -1), "step"),
        (lambda: Curriculum(0.1, steps=0), "steps"),
        (lambda: Curriculum(0.1, accuracy=95), "accuracy"),
        (lambda: Curriculum(0.1, patience=0), "patience"),
        (lambda: Curriculum(0.1, norm="l1"), "known norms"),
        (lambda: Curriculum(0.1, bn="off"), "known modes"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
