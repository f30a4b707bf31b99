"""MART and AWP, each against a plain transcription of its formulas."""

import copy

import pytest
import torch
from helpers.failing_method import Failing
from helpers.small_problems import buffers, distances, images_and_labels, through_a_file, weights
from helpers.small_problems import cnn4 as network
from torch import nn
from torch.nn import functional as F

from pyengm.attacks import attack_mode
from pyengm.attacks.model_state import running_statistics_kept
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods.awp import AWP, MARTAWP, PGDATAWP, TRADESAWP
from pyengm.methods.mart import MART
from pyengm.methods.natural import Natural
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.trades import TRADES
from pyengm.ops import Key, Purpose, philox_normal
from pyengm.optim import ENGM, MSGD, NENGM, EntropySGD
from pyengm.training.steps.train_step import train_step

EPS = {"linf": 0.1, "l2": 0.5}
both_norms = pytest.mark.parametrize("norm", EPS)


def batch(n=6, seed=1, epoch=0, dtype=torch.float64):
    x, y = images_and_labels(n, seed, dtype)
    return x, y, Key(3, epoch, torch.arange(n) * 10)


def moved(point, g, x, norm, eps, step):
    """One step of PGD, in plain torch."""
    if norm == "linf":
        return (point + step * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    delta = point + step * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
    return (x + delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)).clamp(0, 1)


def attacked(model, x, y, key, norm, eps, step, steps):
    """PGD from 0.001 N(0, I) off x, on the model as it is."""
    noise = philox_normal(key.index, x.shape[1:], seed=key.seed, purpose=Purpose.START, epoch=key.epoch)
    point = x + 0.001 * noise
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        point = moved(point, g, x, norm, eps, step)
    return point


def mart_loss(model, x, x_adv, y, beta):
    """One example at a time, with the probabilities and constants of the authors."""
    natural, robust = model(x).softmax(1), model(x_adv).softmax(1)
    losses = []
    for p, q, label in zip(natural, robust, y, strict=True):
        worst = max((q[k] for k in range(len(q)) if k != label), key=lambda t: t.item())
        entropy = -(q[label] + 1e-12).log() - (1.0001 - worst + 1e-12).log()
        divergence = sum(p[k] * (p[k].log() - (q[k] + 1e-12).log()) for k in range(len(p)))
        losses.append(entropy + beta * divergence * (1.0000001 - p[label]))
    return torch.stack(losses)


# MART


@both_norms
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_mart_is_its_formula(norm, bn):
    model, twin, (x, y, key) = network(), network(), batch()
    before = x.clone()
    outcome = MART(EPS[norm], 0.03, 3, beta=4.0, norm=norm, bn=bn)(model, x, y, key)
    x_adv = attacked(twin.train(bn == "train"), x, y, key, norm, EPS[norm], 0.03, 3)
    expected = mart_loss(twin.train(), x, x_adv, y, 4.0)
    torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-8, atol=1e-8)  # 1e-12 / p for p above 1e-4
    assert distances(outcome.x_adv, x, norm).max() <= EPS[norm] + 1e-12
    assert model.block1[1].num_batches_tracked == (5 if bn == "train" else 2)
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, dict(twin.named_buffers())[name], rtol=0, atol=1e-9)
    assert x.equal(before)
    # The weights 1 - p and the boost are differentiated like the rest.
    ours = torch.autograd.grad(outcome.losses.mean(), list(model.parameters()))
    theirs = torch.autograd.grad(expected.mean(), list(twin.parameters()))
    for g, h in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-7, atol=1e-9)


def test_mart_in_float32():
    model, (x, y, key) = network(dtype=torch.float32), batch(dtype=torch.float32)
    outcome = MART(0.1, 0.03, 2)(model, x, y, key)
    expected = mart_loss(network(), x.double(), outcome.x_adv.double(), y, 6.0)
    torch.testing.assert_close(outcome.losses.double(), expected, rtol=1e-5, atol=1e-5)


class Logits(nn.Module):
    """Hands its images through as logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mart_with_probabilities_of_zero_and_one(dtype):
    model = Logits()
    sure = torch.zeros(4, 3, dtype=dtype)
    sure[:, 0] = 1000
    other = sure.roll(1, dims=1)
    y = torch.tensor([0, 0, 1, 2])
    for x, x_adv in ((sure, sure), (sure, other), (other, sure)):
        losses = MART(0.1).outcome(model, x, x_adv, y).losses
        model.zero_grad()
        losses.sum().backward()
        assert losses.isfinite().all()
        assert model.scale.grad.isfinite()
    # Right and sure: nothing but -log 1.0001. Wrong and sure: the boost stops at log 1e4.
    calm = MART(0.1).outcome(model, sure, sure, y).losses
    expected = torch.tensor([-1e-4, -1e-4, 1000 + 9.21034, 1000 + 9.21034], dtype=dtype)
    torch.testing.assert_close(calm, expected, rtol=1e-6, atol=1e-6)


def test_mart_defaults():
    method = MART(0.08)
    assert (method.beta, method.attack.step_size, method.attack.steps, method.attack.bn) == (6.0, 0.02, 10, "eval")
    assert method.threat.eps == 0.08


def test_mart_without_a_ball():
    model, (x, y, key) = network(), batch()
    assert MART(0.0)(model, x, y, key).x_adv.equal(x)


# AWP


def bases(norm="linf"):
    options = {"norm": norm, "steps": 2}
    return [
        PGDAT(EPS[norm], 0.03, bn="train", **options),
        TRADES(EPS[norm], 0.03, **options),
        MART(EPS[norm], 0.03, **options),
    ]


def awp_moves(base, model, x, x_adv, y, gamma):
    """v by its formula, from a copy of the model in training mode."""
    proxy = copy.deepcopy(model).train()
    base.outcome(proxy, x, x_adv, y).losses.mean().backward()
    moves = {}
    for name, p in proxy.named_parameters():
        if name.endswith("weight") and p.dim() >= 2:
            moves[name] = gamma * p.detach().norm() / p.grad.norm() * p.grad
    return moves


@both_norms
@pytest.mark.parametrize("which", [0, 1, 2])
def test_awp_is_its_formula(norm, which):
    base, gamma = bases(norm)[which], 0.05
    model, twin, (x, y, key) = network(), network(), batch()
    before = weights(model)
    outcome = AWP(base, gamma)(model, x, y, key)
    x_adv = base.perturb(twin, x, y, key)
    moves = awp_moves(base, twin, x, x_adv, y, gamma)
    assert len(moves) == 4  # two convolutions, two linear layers
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.add_(moves.get(name, 0))
    expected = base.outcome(twin, x, x_adv, y)
    assert outcome.x_adv.equal(x_adv)
    torch.testing.assert_close(outcome.losses, expected.losses, rtol=1e-9, atol=1e-9)
    for name, b in twin.named_buffers():  # of the last pass alone, besides the attack's
        torch.testing.assert_close(dict(model.named_buffers())[name], b, rtol=0, atol=1e-9)
    for name, p in model.named_parameters():
        v = p.detach() - before[name]
        torch.testing.assert_close(v, moves.get(name, torch.zeros_like(p)), rtol=0, atol=1e-9)
        if name in moves:
            torch.testing.assert_close(v.norm(), gamma * before[name].norm())
    outcome.losses.mean().backward()
    expected.losses.mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-9)
    outcome.undo()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-12)
        assert p.requires_grad


def test_awp_raises_the_loss():
    model, (x, y, key) = network(), batch(32)
    base = PGDAT(0.1, 0.03, 2)
    x_adv = base.perturb(model, x, y, key)
    with torch.no_grad(), attack_mode(model, "batch_stats"):
        at_weights = base.outcome(model, x, x_adv, y).losses.mean()
    outcome = AWP(base, 0.01).outcome(model, x, x_adv, y)
    assert outcome.losses.mean() > at_weights
    outcome.undo()


@pytest.mark.parametrize("kind", [MSGD, ENGM])
def test_awp_steps_at_the_perturbed_weights(kind):
    model, twin, (x, y, key) = network("gn"), network("gn"), batch()
    base = TRADES(0.1, 0.03, 2)
    before = weights(model)
    optimizer = kind(model.parameters(), 0.1, 0.9, weight_decay=0.01)
    train_step(AWP(base, 0.02), model, optimizer, x, y, key)
    x_adv = base.perturb(twin, x, y, key)
    moves = awp_moves(base, twin, x, x_adv, y, 0.02)
    other = kind(twin.parameters(), 0.1, 0.9, weight_decay=0.01)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.add_(moves.get(name, 0))
    other.backward(base.outcome(twin, x, x_adv, y).losses)
    other.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - moves.get(name, 0), rtol=0, atol=1e-9)
        assert not p.detach().equal(before[name])


def test_awp_warmup():
    model, twin, (x, y, key) = network(), network(), batch()
    method, base = AWP(PGDAT(0.1, 0.03, 2), 0.05, warmup=2), PGDAT(0.1, 0.03, 2)
    for epoch in range(4):
        method.start_epoch(model, epoch)
        ours, theirs = method(model, x, y, key), base(twin, x, y, key)
        assert ours.losses.equal(theirs.losses) == (epoch < 2)
        assert (ours.undo is None) == (epoch < 2)
        if ours.undo is not None:
            ours.undo()
    fresh = AWP(PGDAT(0.1, 0.03, 2), 0.05, warmup=2)
    assert fresh(model, x, y, key).undo is None
    fresh.load_state_dict(through_a_file(method.state_dict()))
    assert fresh(model, x, y, key).undo is not None


@pytest.mark.parametrize(
    ("fails", "how", "error"),
    [(1, "error", RuntimeError), (2, "error", RuntimeError), (1, "nan", NonFiniteError), (2, "nan", NonFiniteError)],
)
def test_awp_leaves_the_weights_after_an_error(fails, how, error):
    model, (x, y, key) = network(), batch()
    before, layout = weights(model), {n: m.__dict__.get("track_running_stats") for n, m in model.named_modules()}
    with pytest.raises(error):
        train_step(AWP(Failing(fails, how), 0.05), model, MSGD(model.parameters()), x, y, key)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-12)
    assert {n: m.__dict__.get("track_running_stats") for n, m in model.named_modules()} == layout
    assert all(b is not None for b in (model.block1[1].running_mean, model.block1[1].running_var))


def test_awp_where_there_is_no_gradient():
    model, (x, y, key) = network(), batch()
    with torch.no_grad():
        model.head.weight.zero_()  # all the layers before have no gradient
    before = weights(model)
    outcome = AWP(PGDAT(0.1, 0.0, 1), 0.05)(model, x, y, key)
    assert outcome.losses.isfinite().all()
    assert all(p.detach().equal(before[name]) for name, p in model.named_parameters())  # and the head has no size


def test_awp_within_entropy_sgd():
    base, parts = PGDAT(0.1, 0.03, 2), [network("gn"), network("gn")]
    ends = []
    for model, by_hand in zip(parts, (False, True), strict=True):
        optimizer = EntropySGD(model.parameters(), 0.5, inner_steps=3, noise=0.0)
        turn = iter(range(3))

        def closure(model=model, by_hand=by_hand, turn=turn):
            x, y, key = batch(seed=next(turn))
            if not by_hand:
                outcome = AWP(base, 0.05)(model, x, y, key)
                return outcome.losses, outcome.undo
            x_adv = base.perturb(model, x, y, key)
            before, moves = weights(model), awp_moves(base, model, x, x_adv, y, 0.05)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.add_(moves.get(name, 0))

            @torch.no_grad()
            def restore():
                for name, p in model.named_parameters():
                    p.copy_(before[name])

            return base.outcome(model, x, x_adv, y).losses, restore

        optimizer.step(closure)
        ends.append(weights(model))
    start = weights(network("gn"))
    for name, p in ends[0].items():
        torch.testing.assert_close(p, ends[1][name], rtol=0, atol=1e-9)
        assert not p.equal(start[name])


def test_awp_delegates_to_its_base():
    calls = []

    class Base(PGDAT):
        def prepare(self, dataset):
            calls.append("prepare")

        def start_epoch(self, model, epoch):
            calls.append(("start", epoch))

        def finish_epoch(self, model, metrics):
            calls.append("finish")

        def before_step(self, model, optimizer):
            calls.append("step")

        def extra_state(self):
            return {"kept": 5}

        def load_extra_state(self, state):
            calls.append(dict(state))

        def key_for(self, x, key):
            calls.append("key")
            return super().key_for(x, key)

    base = Base(0.1, 0.03, 1)
    method, model, (x, y, key) = AWP(base, 0.01), network(), batch()
    method.prepare(None)
    method.start_epoch(model, 3)
    train_step(method, model, MSGD(model.parameters()), x, y, key)
    method.finish_epoch(model, {})
    state = through_a_file(method.state_dict())
    assert state == {"epoch": 3, "base": {"kept": 5}}
    method.load_state_dict(state)
    assert calls == ["prepare", ("start", 3), "key", "step", "finish", {"kept": 5}]
    assert method.single_pass
    assert method.threat is base.threat
    assert not method.needs_input_grad
    method.needs_input_grad = True
    assert base.needs_input_grad


@pytest.mark.parametrize("kind", [MSGD, ENGM, NENGM])
@pytest.mark.parametrize("make", [MART, PGDATAWP, TRADESAWP, MARTAWP])
def test_methods_train(make, kind):
    model, (x, y, key) = network(dtype=torch.float32), batch(8, dtype=torch.float32)
    method = make(0.1, 0.03, 2)
    method.needs_input_grad = kind.info.needs_inputs
    method.start_epoch(model, 10)
    optimizer, start = kind(model.parameters(), 0.05), weights(model)
    for _ in range(2):
        ((outcome, _),) = train_step(method, model, optimizer, x, y, key)
        assert outcome.losses.shape == (8,)
        assert outcome.x_adv.requires_grad == kind.info.needs_inputs
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.isfinite().all() for p in model.parameters())
    assert not any(p.detach().equal(start[name]) for name, p in model.named_parameters())


class Passes(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the forward passes of a network's head and the gradients of its weight."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = self.weight = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "aten::convolution" and args[0].shape[1] == 1:  # the first layer
            self.forward += 1
        if func.name() == "aten::convolution_backward" and args[1].shape[1] == 1:
            self.backward += 1
            self.weight += args[-1][1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("make", "forward", "inputs", "weight"),
    [(MART, 5, 3, 2), (PGDATAWP, 5, 3, 2), (TRADESAWP, 8, 3, 4), (MARTAWP, 7, 3, 4)],
)
def test_cost(make, forward, inputs, weight):
    model, (x, y, key) = network(dtype=torch.float32), batch(dtype=torch.float32)
    method = make(0.1, 0.03, 3)
    method.start_epoch(model, 10)
    with Passes() as seen:
        outcome = method(model, x, y, key)
        outcome.losses.mean().backward()
    assert (seen.forward, seen.backward - seen.weight, seen.weight) == (forward, inputs, weight)


def test_named_awp():
    at, trades, mart = PGDATAWP(0.08), TRADESAWP(0.08), MARTAWP(0.08)
    assert [type(method.base) for method in (at, trades, mart)] == [PGDAT, TRADES, MART]
    assert [(method.gamma, method.warmup) for method in (at, trades, mart)] == [(0.01, 0), (0.005, 10), (0.005, 10)]
    assert [method.base.attack.bn for method in (at, trades, mart)] == ["train", "eval", "eval"]
    assert TRADESAWP(0.08, beta=3.0).base.beta == MARTAWP(0.08, beta=3.0).base.beta == 3.0
    made = MARTAWP(0.5, 0.1, 7, gamma=0.02, warmup=3, norm="l2", bn="batch_stats")
    attack = made.base.attack
    assert (made.gamma, made.warmup, attack.step_size, attack.steps, attack.bn) == (0.02, 3, 0.1, 7, "batch_stats")
    assert (made.threat.norm, made.threat.eps) == ("l2", 0.5)


def test_running_statistics_kept():
    model, (x, _, _) = network(), batch()
    model.block2[1].eval()  # as where a pretrained layer is to stay as it is
    before, twin = buffers(model), copy.deepcopy(model)
    with running_statistics_kept(model):
        kept = model(x)
    assert all(b.equal(before[name]) for name, b in model.named_buffers())
    assert kept.equal(twin(x))
    assert not twin.block1[1].running_mean.equal(before["block1.1.running_mean"])
    kept.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MART(-0.1), "eps"),
        (lambda: MART(0.1, -1.0), "step"),
        (lambda: MART(0.1, beta=-1.0), "beta is -1"),
        (lambda: MART(0.1, beta=float("nan")), "beta"),
        (lambda: MART(0.1, norm="l1"), "known norms"),
        (lambda: MARTAWP(0.1, bn="off"), "known modes"),
        (lambda: AWP(PGDAT(0.1), -0.01), "gamma is -0.01"),
        (lambda: AWP(PGDAT(0.1), float("inf")), "gamma"),
        (lambda: AWP(PGDAT(0.1), 0.01, warmup=-1), "warmup is -1"),
        (lambda: AWP(Natural(), 0.01), "base of AWP is Natural"),
        (lambda: AWP(PGDATAWP(0.1), 0.01), "base of AWP is PGDATAWP"),
        (lambda: AWP(PGDAT(0.1), 0.01)(Logits(), torch.rand(2, 3), torch.tensor([0, 1])), "no weights"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
