"""Self-adaptive training, LIET and smooth convergence against their formulas, in plain torch and float64."""

import io

import pytest
import torch
from helpers.reference_attacks import (
    EPS,
    MODES,
    batch,
    check_in_threat_model,
    check_pass,
    gradient_at,
    mode,
    network,
    noise,
    norms_of,
    project,
)
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.attacks import PGD
from pyengm.errors import ConfigError, DataError
from pyengm.methods import DatasetSpec
from pyengm.methods.converge_smooth import FGSMMEPCS, FGSMRSCS, SmoothConvergence
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.methods.liet import LIET
from pyengm.methods.noise import gaussian_start
from pyengm.methods.self_adaptive import SelfAdaptive
from pyengm.ops import Key, Purpose, philox_uniform
from pyengm.training.steps.train_step import train_step

both_norms = pytest.mark.parametrize("norm", EPS)
INDEX = torch.arange(6) * 10 + 5


def images(classes=10):
    return DatasetSpec(INDEX, (1, 8, 8), classes=classes)


def soft_cross_entropy(logits, labels):
    rows = zip(labels, logits.log_softmax(1), strict=True)
    return torch.stack([-sum(t * v for t, v in zip(*row, strict=True)) for row in rows])


def kl(p, log_q):
    return (p * (p.log() - log_q)).sum(1)


def direction(g, norm):
    return g.sign() if norm == "linf" else g / norms_of(g)


def through_a_file(method, other):
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


# Self-adaptive training


@both_norms
def test_self_adaptive_is_its_algorithm(norm):
    method, labels = SelfAdaptive(EPS[norm], steps=2, epochs=5, begin=1, norm=norm), {}
    method.prepare(images())
    for epoch in range(4):
        model, twin, (x, y, key) = network(), network(), batch(epoch=epoch)
        outcome = method(model, x, y, key)
        x_adv = PGD(EPS[norm], EPS[norm] / 4, 2, norm=norm, loss="kl")(twin, x, y, start=gaussian_start(x, key))
        clean, logits = twin(x), twin(x_adv)
        expected = F.cross_entropy(clean, y, reduction="none")
        if epoch >= 1:
            for i, p in enumerate(clean.softmax(1).detach()):
                old = labels.get(i, F.one_hot(y[i], 10).double())
                labels[i] = 0.9 * old + 0.1 * p
            t = torch.stack([labels[i] for i in range(6)])
            w = torch.stack([one.max() for one in t])
            expected = w * 6 / w.sum() * soft_cross_entropy(clean, t)
        expected = expected + 6 * kl(clean.softmax(1), logits.log_softmax(1))
        torch.testing.assert_close(outcome.losses, expected, rtol=1e-6, atol=1e-9)  # labels are kept in float32
        ours = torch.autograd.grad(outcome.losses.mean(), list(model.parameters()))
        for a, b in zip(ours, torch.autograd.grad(expected.mean(), list(twin.parameters())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
        fresh = SelfAdaptive(EPS[norm], steps=2, epochs=5, begin=1, norm=norm)
        fresh.prepare(images())
        method = through_a_file(method, fresh)
    assert SelfAdaptive(0.1, epochs=100).begin == 69


def test_self_adaptive_needs_images_and_classes():
    method, (x, y, key) = SelfAdaptive(0.1, steps=1, epochs=1, begin=0), batch()
    with pytest.raises(ConfigError, match="prepare"):
        method(network(), x, y, key)
    method.prepare(images(classes=7))
    with pytest.raises(DataError, match=r"10 classes, and prepare\(\) was given 7"):
        method(network(), x, y, key)


# LIET


def random_labels(y, key, smoothing, draw=0):
    shares = (
        philox_uniform(key.index, (10,), purpose=Purpose.LABEL, draw=draw, seed=key.seed, epoch=key.epoch).double()
        + 2.0**-25
    )
    labels = []
    for one, c in zip(shares, y.tolist(), strict=True):
        rest = sum(one[k] for k in range(10) if k != c)
        labels.append(
            torch.stack([one.new_tensor(1 - smoothing) if k == c else smoothing * one[k] / rest for k in range(10)])
        )
    return torch.stack(labels)


@both_norms
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_liet_is_its_formula(norm, projected, number):
    method, model, twin, (x, y, key) = (
        LIET(EPS[norm], epochs=4, norm=norm, projected=projected, interval=2),
        0,
        0,
        batch(),
    )
    marks = None
    for k in range(number + 1):
        model, twin = network(), network()
        with torch.no_grad():
            for net in (model, twin):
                net.head.weight *= 1 + k  # another network for the same classes' gradients
        if k == 0:
            with mode(twin, "eval"):
                grey, classes = torch.full((10, 1, 8, 8), 0.5, dtype=x.dtype).requires_grad_(), torch.arange(10)
                labels = random_labels(classes, Key(key.seed, key.epoch, classes), 0.6, draw=1)
                (g,) = torch.autograd.grad(soft_cross_entropy(twin(grey), labels).sum(), grey)
                marks = EPS[norm] * direction(g, norm)
        outcome = method(model, x, y, key)
    named = {"purpose": Purpose.MASK, "seed": key.seed, "epoch": key.epoch}
    share, sign = philox_uniform(key.index, (2,), **named).double().unbind(1)
    mask = philox_uniform(key.index, x.shape[1:], draw=1, **named)
    random = noise(x, key, norm) * (1 if projected else 2)
    delta = torch.stack(
        [
            (1 if s >= 0.5 else -1) * torch.where(m < 0.1 + 0.4 * r, u, marks[c])
            for s, r, m, u, c in zip(sign, share, mask, random, y.tolist(), strict=True)
        ]
    )
    start = (x + delta).clamp(0, 1).requires_grad_()
    labels, before = random_labels(y, key, 0.6), twin(start)
    (g,) = torch.autograd.grad(soft_cross_entropy(before, labels).sum(), start, retain_graph=True)
    moved = start.detach() + EPS[norm] * direction(g, norm)
    x_adv = project(moved, x, norm) if projected else moved.clamp(0, 1)
    logits = twin(x_adv)
    p, q = before.softmax(1), logits.softmax(1)
    divergence = (kl(p, ((p + q) / 2).log()) + kl(q, ((p + q) / 2).log())) / 2
    weight = 100 * 3 / 4  # the third of four epochs
    check_pass(outcome, soft_cross_entropy(logits, labels) + weight * divergence, x_adv, model, twin)
    if projected:
        check_in_threat_model(outcome.x_adv, x, norm)


def test_state_of_liet():
    model, (x, y, key) = network(), batch()
    whole = LIET(0.1, epochs=4, interval=2)
    whole(model, x, y, key)
    resumed = through_a_file(whole, LIET(0.1, epochs=4, interval=2))
    with torch.no_grad():
        model.head.weight *= -1  # other gradients on grey images
    fresh = LIET(0.1, epochs=4, interval=2)
    losses = [method(model, x, y, key).losses for method in (whole, resumed, fresh)]
    assert losses[0].equal(losses[1])
    assert not losses[0].allclose(losses[2])


# Smooth convergence


def test_smooth_convergence_over_a_run():
    convergence, active = SmoothConvergence(110, 0.03, 2.0), []
    losses, mean = torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0
    for epoch in range(110):
        convergence.start_epoch(epoch)
        offsets = (0.1, -0.1, 0.01)
        signs = []
        for offset in offsets:
            own = losses - losses.mean() + mean + offset
            term = convergence.term(own)
            signs.append((term / (2 * own)).mean().round().item())
            assert term.allclose(2 * signs[-1] * own)
        assert signs in ([1, -1, 0], [0, 0, 0])
        if signs == [1, -1, 0]:
            active.append(epoch)
        mean += sum(offsets) / 3
    assert active == [epoch for epoch in range(110) if 1 < epoch < 99 or 101 < epoch < 104 or 106 < epoch < 109]


@both_norms
@pytest.mark.parametrize("bn", MODES)
@pytest.mark.parametrize("past", [0.0, 100.0])
def test_fgsm_rs_cs_is_its_formula(norm, bn, past):
    method, model, twin, (x, y, key) = FGSMRSCS(EPS[norm], epochs=110, norm=norm, bn=bn), network(), network(), batch()
    method.convergence.epoch = 10
    method.convergence.sums[0] = past
    outcome = method(model, x, y, key)
    start = (x + noise(x, key, norm)).clamp(0, 1)
    with mode(twin, bn):
        x_adv = (start + EPS[norm] * direction(gradient_at(twin, start, y), norm)).clamp(0, 1)
    labels = torch.full((6, 10), 0.4 / 9, dtype=x.dtype).scatter(1, y[:, None], 0.6)
    sign = 1 if past == 0 else -1
    expected = soft_cross_entropy(twin(x_adv), labels) + sign * soft_cross_entropy(twin(start), labels)
    check_pass(outcome, expected, x_adv, model, twin)


@both_norms
def test_fgsm_mep_cs_is_fgsm_pgi_with_clean_losses(norm):
    method, base = FGSMMEPCS(EPS[norm], epochs=110, norm=norm), FGSMPGI(EPS[norm], reg_weight=0.0, norm=norm)
    for one in (method, base):
        one.prepare(images())
    method.convergence.epoch = 10
    for epoch in (2, 3):
        model, twin, (x, y, key) = network(), network(), batch(epoch=epoch)
        outcome, plain = method(model, x, y, key), base(twin, x, y, key)
        labels = torch.full((6, 10), 0.4 / 9, dtype=x.dtype).scatter(1, y[:, None], 0.6)
        check_pass(outcome, plain.losses + soft_cross_entropy(twin(x), labels), plain.x_adv, model, twin)
    method.start_epoch(network(), 11)
    assert method.convergence.sums[0] > 0
    fresh = FGSMMEPCS(EPS[norm], epochs=110, norm=norm)
    fresh.prepare(images())
    assert through_a_file(method, fresh).convergence.sums.equal(method.convergence.sums)


# All of them


def made(norm):
    methods = [
        SelfAdaptive(EPS[norm], steps=2, epochs=4, begin=0, norm=norm),
        LIET(EPS[norm], epochs=4, norm=norm),
        FGSMRSCS(EPS[norm], epochs=110, norm=norm),
        FGSMMEPCS(EPS[norm], epochs=110, norm=norm),
    ]
    for method in methods:
        method.prepare(images())
        method.start_epoch(network(), 10)
    return methods


@both_norms
@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
@pytest.mark.parametrize("which", range(4))
def test_train_step(norm, optimizer, which):
    method, model, (x, y, key) = made(norm)[which], network("gn", torch.float32), batch(dtype=torch.float32)
    method.needs_input_grad = True
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer(model.parameters(), lr=0.05), x, y, key)
    assert outcome.x_adv.grad.abs().sum() > 0
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfAdaptive(0.1, epochs=1, momentum=2), "momentum"),
        (lambda: SelfAdaptive(0.1, epochs=1, begin=-1), "begin"),
        (lambda: LIET(0.1, epochs=0), "epochs"),
        (lambda: LIET(0.1, epochs=1, min_share=0.6), "min_share"),
        (lambda: LIET(0.1, epochs=1, smoothing=1), "smoothing"),
        (lambda: LIET(0.1, epochs=1, max_lambda=-1), "max_lambda is -1"),
        (lambda: FGSMRSCS(0.1, epochs=1, band=-1), "band is -1"),
        (lambda: FGSMRSCS(0.1, epochs=1, confidence=0), "confidence is 0"),
        (lambda: FGSMRSCS(0.1, epochs=0), "epochs is 0"),
        (lambda: FGSMMEPCS(0.1, epochs=1, weight=-1), "weight is -1"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
