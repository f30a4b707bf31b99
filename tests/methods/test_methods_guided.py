"""GAT, backward smoothing, FAT, ATES, MLCAT and LBGAT against their formulas, in plain torch and float64."""

import copy
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
    mode,
    network,
    noise,
    norms_of,
    project,
    statistics,
    step,
)
from helpers.small_problems import theta
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.attacks import PGD
from pyengm.errors import ConfigError
from pyengm.methods.ates import ATES
from pyengm.methods.backward_smoothing import BackwardSmoothing
from pyengm.methods.fat import FAT
from pyengm.methods.gat import GAT
from pyengm.methods.lbgat import LBGAT
from pyengm.methods.mart import MART
from pyengm.methods.mlcat import MLCAT, MLCATWP
from pyengm.methods.noise import gaussian_start, random_signs
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.trades import TRADES
from pyengm.ops import Purpose, philox_normal, philox_uniform
from pyengm.training.steps.train_step import train_step

both_norms = pytest.mark.parametrize("norm", EPS)


def direction(g, norm):
    return g.sign() if norm == "linf" else g / norms_of(g)


def ce(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def kl(p, q):
    """KL(softmax(p_i) || softmax(q_i)) of rows of logits, class by class."""
    p, log_q = F.softmax(p, 1), F.log_softmax(q, 1)
    return torch.stack(
        [sum(a * (a.log() - b) for a, b in zip(*rows, strict=True)) for rows in zip(p, log_q, strict=True)]
    )


def gradient(model, point, loss):
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(loss(model(leaf)).sum(), leaf)[0]


# GAT


@both_norms
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("as_published", [False, True])
def test_gat_is_its_formula(norm, number, as_published):
    """The relaxation enters the attack in the second batch of the epoch only."""
    method = GAT(EPS[norm], epochs=100, norm=norm, as_published=as_published)
    method.start_epoch(network(), 3)
    for _ in range(number):
        method(network(), *batch())
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = method(model, x, y, key)
    radius = EPS[norm] / 2 / (1 if norm == "linf" else 8)
    start = project(x + radius * random_signs(x, key), x, norm)
    with mode(twin, "train" if as_published else "batch_stats"):
        p = F.softmax(twin(x), 1).detach()
    with mode(twin, "eval"):
        alternate = number % 2

        def losses(logits):
            relaxed = ((p - F.softmax(logits, 1)) ** 2).sum(1)
            return F.cross_entropy(logits, y, reduction="none") + alternate * 10 * relaxed

        x_adv = step(start, gradient(twin, start, losses), x, norm, EPS[norm])
    clean, logits = twin(x), twin(x_adv)
    distance = torch.stack(
        [
            sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
            for rows in zip(F.softmax(clean, 1), F.softmax(logits, 1), strict=True)
        ]
    )
    expected = F.cross_entropy(clean, y, reduction="none") + 10 * distance
    check_pass(outcome, expected, x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


def test_gat_weight_over_the_epochs():
    method = GAT(0.1, epochs=100)
    weights = []
    for epoch in range(100):
        method.start_epoch(network(), epoch)
        weights.append(method.weight)
    assert weights == [10.0] * 86 + [40.0] * 14
    assert GAT(0.1, epochs=50).late_from == 43
    assert GAT(0.1, epochs=50, late_from=7).late_from == 7


# Backward smoothing


@both_norms
@pytest.mark.parametrize("bn", MODES)
@pytest.mark.parametrize("steps", [1, 2])
def test_backward_smoothing_is_its_formula(norm, bn, steps):
    model, twin, (x, y, key) = network(), network(), batch()
    outcome = BackwardSmoothing(EPS[norm], steps=steps, norm=norm, bn=bn)(model, x, y, key)
    with mode(twin, bn):
        leaf = x.clone().requires_grad_()
        logits = twin(leaf)
        z = logits.detach()
        u = philox_uniform(key.index, (10,), purpose=Purpose.LOGITS, seed=key.seed, epoch=key.epoch).to(x)
        (g,) = torch.autograd.grad(-kl(z + 2 * u - 1, logits).sum(), leaf)
        x_adv = step(x, g, x, norm, EPS[norm])
        for _ in range(steps):
            x_adv = step(x_adv, gradient(twin, x_adv, lambda logits: kl(z, logits)), x, norm, EPS[norm])
    clean, logits = twin(x), twin(x_adv)
    check_pass(outcome, F.cross_entropy(clean, y, reduction="none") + 10 * kl(clean, logits), x_adv, model, twin)
    check_in_threat_model(outcome.x_adv, x, norm)


# FAT


def friendly(model, x, y, key, norm, *, loss, kappa, jitter, steps, size):
    """The attack of the authors' code, one example after another; returns the steps of each, too."""
    start = project(x + noise(x, key, norm), x, norm) if loss == "ce" else gaussian_start(x, key).clamp(0, 1)
    points, taken = [], []
    for i in range(len(x)):
        one, label, point, left, count = x[i : i + 1], y[i : i + 1], start[i : i + 1], kappa, 0
        target = model(one).detach()
        for k in range(steps):
            leaf = point.clone().requires_grad_()
            logits = model(leaf)
            if logits.argmax() != label:
                if left == 0:
                    break
                left -= 1
            value = kl(target, logits) if loss == "trades" else F.cross_entropy(logits, label)
            (g,) = torch.autograd.grad(value.sum(), leaf)
            normal = philox_normal(
                key.index[i : i + 1], x.shape[1:], purpose=Purpose.JITTER, draw=k, seed=key.seed, epoch=key.epoch
            ).to(x)
            point = project(point + size * direction(g, norm) + jitter * normal, one, norm)
            count += 1
        points.append(point.detach())
        taken.append(count)
    return torch.cat(points), taken


def trained(steps=20):
    """A network that classifies some images right, and others not."""
    model, (x, y, _) = network(), batch(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@both_norms
@pytest.mark.parametrize("loss", ["ce", "trades", "mart"])
@pytest.mark.parametrize("kappa", [0, 2])
def test_fat_is_its_algorithm(norm, loss, kappa):
    model, twin, base, (x, y, key) = trained(), trained(), trained(), batch(24)
    jitter, size = 0.001 if loss == "ce" else 0.0, EPS[norm] / 12
    outcome = FAT(EPS[norm], size, 8, epochs=20, loss=loss, kappa=kappa, norm=norm)(model, x, y, key)
    with mode(twin, "eval"):
        x_adv, taken = friendly(twin, x, y, key, norm, loss=loss, kappa=kappa, jitter=jitter, steps=8, size=size)
    assert len(set(taken)) > 2  # else the test shows nothing
    assert (outcome.x_adv - x_adv).abs().max() < 1e-9
    kinds = {"ce": PGDAT, "trades": TRADES, "mart": MART}
    expected = kinds[loss](EPS[norm], norm=norm).outcome(base, x, x_adv, y)
    check_pass(outcome, expected.losses, x_adv, model, base)
    check_in_threat_model(outcome.x_adv, x, norm)


@pytest.mark.parametrize("bn", ["train", "batch_stats"])
@pytest.mark.parametrize("kind", [FAT, ATES])
def test_attacks_that_stop_keep_whole_batches_with_batch_statistics(kind, bn):
    model, rows, (x, y, key) = trained(), [], batch(12)
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    kind(0.1, steps=6, epochs=20, bn=bn)(model, x, y, key)
    handle.remove()
    assert set(rows) == {12}


def test_kappa_over_the_epochs():
    """As the authors' code has it, which counts epochs from 1."""
    for loss, length, last in (("ce", 120, (50, 90)), ("trades", 85, (30, 50, 70)), ("mart", 90, (20, 40, 60, 80))):
        method = FAT(0.1, epochs=length, loss=loss)
        assert [method.kappa_of(epoch) for epoch in range(length)] == [
            sum(number > one for one in last) for number in range(1, length + 1)
        ]
    assert [FAT(0.1, epochs=12).kappa_of(epoch) for epoch in range(12)] == [0] * 5 + [1] * 4 + [2] * 3
    assert FAT(0.1, epochs=12, kappa=3).kappa_of(0) == 3


# ATES


def hardened(model, x, y, key, norm, *, gap, steps, size):
    """The attack of the authors' code, one example after another; returns the steps of each, too."""
    start = project(x + noise(x, key, norm), x, norm)
    points, taken = [], []
    for i in range(len(x)):
        one, label, point, count = x[i : i + 1], int(y[i]), start[i : i + 1], 0
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            logits = model(leaf)[0]
            p = (logits.exp() / logits.exp().sum()).tolist()
            if max(p[:label] + p[label + 1 :]) - p[label] > gap:
                break
            (g,) = torch.autograd.grad(logits.exp().sum().log() - logits[label], leaf)
            point = project(point + size * direction(g, norm), one, norm)
            count += 1
        points.append(point.detach())
        taken.append(count)
    return torch.cat(points), taken


@both_norms
@pytest.mark.parametrize("gap", [-0.2, 0.0, 0.3])
def test_ates_is_its_algorithm(norm, gap):
    model, twin, base, (x, y, key) = trained(100), trained(100), trained(100), batch(24)
    size = EPS[norm] / 12
    outcome = ATES(EPS[norm], size, 8, epochs=20, first_gap=gap, last_gap=gap, norm=norm)(model, x, y, key)
    with mode(twin, "eval"):
        x_adv, taken = hardened(twin, x, y, key, norm, gap=gap, steps=8, size=size)
    assert len(set(taken)) > 2  # else the test shows nothing
    assert (outcome.x_adv - x_adv).abs().max() < 1e-9
    check_pass(outcome, ce(base, x_adv, y), x_adv, model, base)
    check_in_threat_model(outcome.x_adv, x, norm)


def test_ates_that_never_stops_is_pgd_adversarial_training():
    x, y, key = batch(12)
    never = ATES(0.1, steps=5, epochs=4, first_gap=1, last_gap=1)(trained(), x, y, key)
    assert torch.equal(never.x_adv, PGDAT(0.1, steps=5)(trained(), x, y, key).x_adv)


def test_gap_over_the_epochs():
    """As the authors' loop has it, which adds to the gap in epochs 30 to 69 of 100, counted from 0."""
    gap, method = 0.0, ATES(0.1, epochs=100)
    for epoch in range(100):
        gap += 0.4 / 40 if 30 <= epoch < 70 else 0
        assert method.gap(epoch) == pytest.approx(gap, abs=1e-12)
    short = ATES(0.1, epochs=10, first_gap=-0.2, last_gap=1.0, begin=1, end=3)
    assert [short.gap(epoch) for epoch in range(4)] == pytest.approx([-0.2, 0.4, 1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_gap": -1.5}, "first_gap is -1.5; expected a difference of probabilities"),
        ({"last_gap": math.nan}, "last_gap is nan"),
        ({"begin": 5, "end": 5}, "expected 0 <= begin < end"),
        ({"end": math.inf}, "expected 0 <= begin < end"),
        ({"epochs": 0}, "epochs, begin and end are 0"),
    ],
)
def test_ates_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        ATES(0.1, **{"epochs": 10} | options)


# MLCAT


@pytest.mark.parametrize("as_published", [False, True])
def test_mlcat_raises_small_losses(as_published):
    model, twin, (x, y, key) = trained(), trained(), batch(24)
    outcome = MLCAT(0.02, steps=2, least_loss=1.2, as_published=as_published)(model, x, y, key)
    x_adv = PGD(0.02, 0.005, 2, bn="train")(twin, x, y, key=key)
    losses = ce(twin, x_adv, y)
    low = losses.detach() < 1.2
    assert 0 < low.sum() < 24
    expected = []
    for one in losses:
        small = one.item() < 1.2
        expected.append((one * 0 + 1.2 if as_published else one * (1.2 / one.item())) if small else one)
    assert outcome.losses[low].allclose(torch.full_like(outcome.losses[low], 1.2))
    check_pass(outcome, torch.stack(expected), x_adv, model, twin)


def test_mlcat_of_losses_of_zero():
    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, x):
            return self.scale * F.one_hot(torch.arange(len(x)), 10)

    model, x, y = Sure(), torch.rand(4, 1, 8, 8), torch.arange(4)
    losses = MLCAT(0.1, steps=1).outcome(model, x, x, y).losses
    losses.sum().backward()
    assert losses.equal(torch.zeros(4))
    assert model.scale.grad.isfinite()


def test_mlcat_moves_weights_up_the_small_losses():
    model, twin, (x, y, key) = trained(), trained(), batch(24)
    method = MLCATWP(0.02, steps=2, least_loss=1.2, ascents=3, gamma=0.05, bn="eval")
    before, buffers = theta(model), statistics(model)
    outcome = method(model, x, y, key)
    x_adv = PGD(0.02, 0.005, 2)(twin, x, y, key=key)
    names = [name for name, p in twin.named_parameters() if "weight" in name and p.dim() > 1]
    start = {name: p.detach().clone() for name, p in twin.named_parameters()}
    size = math.sqrt(sum((start[name] ** 2).sum().item() for name in names))
    total = {name: torch.zeros_like(start[name]) for name in names}
    moved = start
    for _ in range(3):
        proxy = copy.deepcopy(twin)
        proxy.load_state_dict(moved, strict=False)
        losses = ce(proxy, x_adv, y)
        assert 0 < (losses < 1.2).sum() < 24
        sum(one for one in losses if one.item() < 1.2).backward()
        grads = dict(proxy.named_parameters())
        total = {name: total[name] + grads[name].grad for name in names}
        norm = math.sqrt(sum((total[name] ** 2).sum().item() for name in names))
        moved = start | {name: start[name] + 0.05 * size / norm * total[name] for name in names}
    twin.load_state_dict(moved, strict=False)
    check_pass(outcome, ce(twin, x_adv, y), x_adv, model, twin)
    outcome.undo()
    torch.testing.assert_close(theta(model), before, rtol=1e-12, atol=1e-12)
    assert buffers["block1.1.num_batches_tracked"] + 1 == model.block1[1].num_batches_tracked


def test_mlcat_without_small_losses_moves_nothing():
    model, (x, y, key) = network(), batch()
    before = theta(model)
    MLCATWP(0.1, steps=1, least_loss=1e-9)(model, x, y, key)
    assert theta(model).equal(before)


# LBGAT


@both_norms
@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_is_one_sgd_of_both_networks(norm, beta):
    """As the authors' code has it: the mean square over all logits, one loss, one optimiser."""
    method, model = LBGAT(EPS[norm], steps=2, beta=beta, norm=norm), network()
    optimizer = MSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    twin = teacher = joint = None
    for number in range(3):
        x, y, key = batch(seed=number, epoch=number)
        if joint is not None:
            optimizer.param_groups[0]["lr"] = joint.param_groups[0]["lr"] = 0.1 / (1 + number)
        twin = network() if twin is None else twin
        x_adv = PGD(EPS[norm], EPS[norm] / 4, 2, norm=norm, loss="kl")(twin, x, y, start=gaussian_start(x, key))
        if teacher is None:  # the first step builds it
            teacher = copy.deepcopy(method._teacher_for(model, x, 10, key.seed))
            joint = torch.optim.SGD([*twin.parameters(), *teacher.parameters()], 0.1, 0.9, weight_decay=0.01)
        train_step(method, model, optimizer, x, y, key)
        joint.zero_grad()
        out_adv, out, guide = twin(x_adv), twin(x), teacher(x)
        square = F.mse_loss(out_adv, guide)
        (square + F.cross_entropy(guide, y) + beta * kl(out, out_adv).mean()).backward()
        joint.step()
    torch.testing.assert_close(theta(model), theta(twin), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(theta(method.teacher), theta(teacher), rtol=1e-8, atol=1e-10)
    for (name, b), (_, c) in zip(method.teacher.named_buffers(), teacher.named_buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-8, atol=1e-10, msg=name)


def test_teacher_of_lbgat():
    model, (x, y, key) = network(), batch()
    state = torch.random.get_rng_state()
    first, second, other = LBGAT(0.1, steps=1), LBGAT(0.1, steps=1), LBGAT(0.1, steps=1, teacher="cnn4")
    for method in (first, second, other):
        method(copy.deepcopy(model), x, y, key)
    assert torch.random.get_rng_state().equal(state)
    assert theta(first.teacher).equal(theta(second.teacher))
    assert not theta(first.teacher).equal(theta(model))
    assert other.teacher.block1[0].out_channels == 32  # the architecture's own width
    assert first.teacher.block1[0].out_channels == 4
    with pytest.raises(ConfigError, match="no layer that can be drawn anew"):
        LBGAT(0.1, steps=1)._new(nn.Flatten(), x, 10)


def test_state_of_lbgat():
    def run(method, model, optimizer, numbers):
        for number in numbers:
            x, y, key = batch(seed=number, epoch=number)
            train_step(method, model, optimizer, x, y, key)

    models = [network(), network()]
    optimizers = [MSGD(model.parameters(), lr=0.05) for model in models]
    whole, part = LBGAT(0.1, steps=1), LBGAT(0.1, steps=1)
    run(whole, models[0], optimizers[0], range(4))
    run(part, models[1], optimizers[1], range(2))
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    resumed = LBGAT(0.1, steps=1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.state_dict().keys() == {"teacher", "sgd"}
    run(resumed, models[1], optimizers[1], range(2, 4))
    assert theta(models[0]).equal(theta(models[1]))
    assert theta(whole.teacher).equal(theta(resumed.teacher))


# All of them


def made(norm):
    return [
        GAT(EPS[norm], epochs=10, norm=norm),
        BackwardSmoothing(EPS[norm], norm=norm),
        FAT(EPS[norm], epochs=10, steps=3, norm=norm),
        FAT(EPS[norm], epochs=10, steps=3, norm=norm, loss="trades"),
        MLCAT(EPS[norm], steps=2, norm=norm),
        MLCATWP(EPS[norm], steps=2, norm=norm),
        LBGAT(EPS[norm], steps=2, norm=norm),
    ]


@both_norms
@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
@pytest.mark.parametrize("which", range(7))
def test_train_step(norm, optimizer, which):
    method, model, (x, y, key) = made(norm)[which], network("gn", torch.float32), batch(dtype=torch.float32)
    method.needs_input_grad = True
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer(model.parameters(), lr=0.1), x, y, key)
    assert outcome.x_adv.grad.abs().sum() > 0
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAT(0.1, epochs=0), "epochs"),
        (lambda: GAT(0.1, epochs=1, l2_weight=-1), "l2_weight is -1"),
        (lambda: GAT(0.1, epochs=1, bn="off"), "known modes"),
        (lambda: BackwardSmoothing(0.1, noise=-1), "noise is -1"),
        (lambda: BackwardSmoothing(0.1, beta=-1), "beta is -1"),
        (lambda: FAT(0.1, epochs=1, loss="hinge"), "known losses: ce, trades, mart"),
        (lambda: FAT(0.1, epochs=1, kappa=-1), "kappa"),
        (lambda: FAT(0.1, epochs=1, jitter=-1), "jitter is -1"),
        (lambda: MLCAT(0.1, least_loss=0), "least_loss is 0"),
        (lambda: MLCATWP(0.1, ascents=0), "ascents is 0"),
        (lambda: LBGAT(0.1, beta=math.nan), "beta is nan"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_labels_of_fat():
    method = FAT(0.1, epochs=1, loss="mart")
    with pytest.raises(ConfigError, match="boosted cross-entropy needs one right class"):
        method.label_smoothing = 0.1
    model, (x, y, key) = network(), batch()
    smooth, plain = FAT(0.1, epochs=1), FAT(0.1, epochs=1)
    smooth.label_smoothing = 0.2
    assert not smooth(model, x, y, key).losses.allclose(plain(network(), x, y, key).losses)
