"""Free adversarial training and YOPO, which use the backward pass of the losses for the attack as well."""

import copy
import io

import pytest
import torch
from helpers.small_problems import ce, images_and_labels
from helpers.small_problems import cnn4 as network
from torch import nn

from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import StepOutput
from pyengm.methods.first_layer import at_first_layer, first_output
from pyengm.methods.free_at import FreeAT
from pyengm.methods.yopo import YOPO
from pyengm.ops import Key, Purpose, philox_normal, philox_uniform
from pyengm.optim import AENGM, ENGM, FENGM, MGNC, MSGD, NENGM, SNGM
from pyengm.training.steps.train_step import train_step

EPS = {"linf": 0.1, "l2": 0.5}
both_norms = pytest.mark.parametrize("norm", EPS)
OPTIMIZERS = [MSGD, MGNC, SNGM, ENGM, FENGM, NENGM, AENGM]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def batch(n=6, seed=1, dtype=torch.float64):
    x, y = images_and_labels(n, seed, dtype)
    x[0, 0, :4], x[1, 0, 4:] = 0, 1  # pixels that leave [0, 1] with the next step
    return x, y, Key(3, seed, torch.arange(n) * 10)


def plain_sgd(model, optimizer=MSGD, **options):
    return optimizer(model.parameters(), lr=0.1, momentum=0, weight_decay=0, **options)


def rows(t):
    return t.view(-1, 1, 1, 1)


def into_ball(delta, norm):
    if norm == "linf":
        return delta.clamp(-EPS[norm], EPS[norm])
    norms = rows(delta.flatten(1).norm(dim=1))
    return torch.where(norms > EPS[norm], delta * EPS[norm] / norms, delta)


def along(g, norm):
    norms = rows(g.flatten(1).norm(dim=1))
    return g.sign() if norm == "linf" else g / norms.where(norms > 0, 1.0)


def same(model, twin):
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def descend(model, lr=0.1):
    with torch.no_grad():
        for p in model.parameters():
            p -= lr * p.grad
    model.zero_grad()


# FreeAT


@both_norms
def test_free_is_its_formula(norm):
    eps = EPS[norm]
    method, model, twin = FreeAT(eps, 0.7 * eps, replays=3, norm=norm), network(), network()
    optimizer, delta, stayed = plain_sgd(model), torch.zeros(6, 1, 8, 8, dtype=torch.float64), 0
    for k, n in enumerate((6, 4, 6)):  # a short batch takes the first rows
        x, y, key = batch(n, seed=k)
        used = train_step(method, model, optimizer, x, y, key)
        assert len(used) == 3
        for outcome, _ in used:
            assert outcome.update
            moved = x + delta[:n]
            x_adv = moved.clamp(0, 1).requires_grad_()
            losses = ce(twin(x_adv), y)
            torch.testing.assert_close(outcome.losses, losses, rtol=0, atol=1e-9)
            torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-9)
            losses.mean().backward()
            descend(twin)
            g = torch.where((moved < 0) | (moved > 1), 0, x_adv.grad)  # clipped pixels stay
            delta[:n] = into_ball(delta[:n] + 0.7 * eps * along(g, norm), norm)
            stayed += int((g == 0).sum())
        torch.testing.assert_close(method.delta, delta, rtol=0, atol=1e-9)
    assert stayed > 0
    same(model, twin)
    assert model.block1[1].num_batches_tracked == 9


@every_optimizer
@both_norms
def test_free_steps_along_the_gradient_whatever_the_optimizer(norm, optimizer):
    method, other = FreeAT(EPS[norm], replays=1, norm=norm), FreeAT(EPS[norm], replays=1, norm=norm)
    model, twin = network("gn"), network("gn")
    optimizers = plain_sgd(model, optimizer), plain_sgd(twin)
    for seed in (1, 2):
        x, y, key = batch(seed=seed)
        twin.load_state_dict(model.state_dict())
        train_step(method, model, optimizers[0], x, y, key)
        train_step(other, twin, optimizers[1], x, y, key)
        torch.testing.assert_close(method.delta, other.delta, rtol=0, atol=1e-9)
    assert method.delta.any()


def test_free_with_a_scaled_loss():
    methods, models = [FreeAT(0.1, replays=2), FreeAT(0.1, replays=2)], [network(), network()]
    for method, model, scaler in zip(methods, models, (None, torch.amp.GradScaler("cpu", 2.0**10)), strict=True):
        train_step(method, model, plain_sgd(model), *batch(), scaler=scaler)
    assert methods[0].delta.equal(methods[1].delta)
    same(*models)


@both_norms
@pytest.mark.parametrize("factor", [1, 0])
def test_free_stays_within_the_threat_model(norm, factor):
    eps, model = EPS[norm] * factor, network(dtype=torch.float32)
    method, optimizer = FreeAT(eps, replays=2, norm=norm), plain_sgd(model)
    for seed in range(3):
        x, y, key = batch(seed=seed, dtype=torch.float32)
        before = x.clone()
        for outcome, _ in train_step(method, model, optimizer, x, y, key):
            delta = (outcome.x_adv - x).flatten(1)
            norms = torch.linalg.vector_norm(delta, ord={"linf": torch.inf, "l2": 2}[norm], dim=1)
            assert norms.max() <= eps + 1e-6  # roundings of x + delta
            assert 0 <= outcome.x_adv.min() <= outcome.x_adv.max() <= 1
        assert x.equal(before)
    assert factor == 0 or delta.any()


@pytest.mark.parametrize("optimizer", [ENGM, MSGD])
def test_an_interrupted_free_run_resumes_bitwise(optimizer):
    model = network("gn")
    method, opt = FreeAT(0.1, replays=2), optimizer(model.parameters(), lr=0.05)
    for seed in (0, 1):
        train_step(method, model, opt, *batch(seed=seed))
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    other, twin = FreeAT(0.1, replays=2), copy.deepcopy(model)
    opt2 = optimizer(twin.parameters(), lr=0.05)
    opt2.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for seed, n in ((2, 3), (3, 6)):
        train_step(method, model, opt, *batch(n, seed))
        train_step(other, twin, opt2, *batch(n, seed))
    assert method.delta.equal(other.delta)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_free_grows_to_larger_batches():
    method, model = FreeAT(0.1, replays=1), network()
    train_step(method, model, plain_sgd(model), *batch(4))
    first = method.delta.clone()
    passes = method.passes(model, *batch(6))
    next(passes)
    assert method.delta.shape[0] == 6
    assert method.delta[:4].equal(first)
    assert not method.delta[4:].any()


def test_free_errors():
    for make, message in (
        (lambda: FreeAT(-1), "eps is -1"),
        (lambda: FreeAT(0.1, -1.0), "step_size and replays are -1.0 and 8"),
        (lambda: FreeAT(0.1, replays=0), "step_size and replays are None and 0"),
        (lambda: FreeAT(0.1, bn="eval"), "in one pass"),
        (lambda: FreeAT(0.1, norm="l1"), "known norms"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    method, model = FreeAT(0.1), network()
    assert method.state_dict() == {}
    method.load_state_dict({})
    with pytest.raises(RuntimeError, match="inputs=x_adv"):
        list(method.passes(model, *batch()))
    with pytest.raises(CheckpointError, match=r"shape \(1, 4, 4\), not \(1, 8, 8\)"):
        method.load_state_dict({"delta": torch.zeros(6, 1, 4, 4)})


# YOPO


def slow_yopo(model, x, y, key, norm, step, outer, inner, weigh=None):
    """IndexMap and losses of every outcome; gradients add up in .grad. weigh(j): weights of the j-th losses."""
    conv = model.block1[0]

    def rest(h):
        return model[1:](model.block1[1:](h))

    named = {"seed": key.seed, "epoch": key.epoch}
    if norm == "linf":
        eta = (2 * philox_uniform(key.index, (1, 8, 8), purpose=Purpose.START, **named).double() - 1) * EPS[norm]
    else:
        z = philox_normal(key.index, (1, 8, 8), purpose=Purpose.START, **named).double()
        radius = philox_uniform(key.index, (1, 1, 1), purpose=Purpose.RADIUS, **named).double() ** (1 / 64)
        eta = z / rows(z.flatten(1).norm(dim=1)) * radius * EPS[norm]
    eta = (x + eta).clamp(0, 1) - x
    seen = []
    for j in range(outer):
        h = conv(x + eta)
        h.retain_grad()
        losses = ce(rest(h), y)
        seen.append((x + eta, losses.detach()))
        w = torch.ones_like(losses) if weigh is None else weigh(j)
        (losses * w).mean().backward()
        p = -h.grad * len(x) / rows(w)
        for _ in range(inner):
            leaf = eta.clone().requires_grad_()
            (g,) = torch.autograd.grad((conv(x + leaf) * p).sum(), leaf)
            eta = into_ball(eta - step * along(g, norm), norm)
            eta = (x + eta).clamp(0, 1) - x
        hamiltonians = (conv(x + eta) * p).flatten(1).sum(1)
        (-hamiltonians).mean().backward()
        seen.append((x + eta, -hamiltonians.detach()))
    return seen


def agree(used, seen, atol=1e-9):
    assert len(used) == len(seen)
    for (outcome, _), (x_adv, losses) in zip(used, seen, strict=True):
        torch.testing.assert_close(outcome.x_adv.detach(), x_adv, rtol=0, atol=atol)
        torch.testing.assert_close(outcome.losses.detach(), losses, rtol=0, atol=atol)


@both_norms
@pytest.mark.parametrize(("outer", "inner"), [(3, 2), (1, 4)])
def test_yopo_is_its_formula(norm, outer, inner):
    eps = EPS[norm]
    method, model, twin = YOPO(eps, outer=outer, inner=inner, norm=norm), network(), network()
    optimizer = plain_sgd(model)
    for seed in (1, 2):
        x, y, key = batch(seed=seed)
        used = train_step(method, model, optimizer, x, y, key)
        agree(used, slow_yopo(twin, x, y, key, norm, eps / 4, outer, inner))
        descend(twin)
        same(model, twin)
    assert [outcome.update for outcome, _ in used] == [False] * (2 * outer - 1) + [True]
    assert [outcome.logits is None for outcome, _ in used] == [False, True] * outer
    assert model.block1[1].num_batches_tracked == 2 * outer
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


@every_optimizer
@both_norms
def test_yopo_has_the_gradient_of_the_losses_whatever_the_optimizer(norm, optimizer):
    model, method = network("gn"), YOPO(EPS[norm], outer=2, inner=2, norm=norm)
    opt = plain_sgd(model, optimizer, **({"alpha": 0.05} if optimizer in (ENGM, NENGM, AENGM) else {}))
    method.needs_input_grad = opt.info.needs_inputs
    for seed in (1, 1, 2):  # the first call looks at the structure of the graph by passes of its own
        x, y, key = batch(seed=seed)
        expected = slow_yopo(copy.deepcopy(model), x, y, key, norm, EPS[norm] / 4, 2, 2)
        agree(train_step(method, model, opt, x, y, key), expected)


@pytest.mark.parametrize("norms", ["auto", "exact"])
def test_yopo_under_batch_norm_has_the_gradient_of_the_weighted_losses(norms):
    model, method = network(), YOPO(0.1, outer=2, inner=2)
    opt = plain_sgd(model, ENGM, alpha=0.3, norms=norms)
    for seed in (1, 2):
        x, y, key = batch(seed=seed)
        twin = copy.deepcopy(model)
        used = train_step(method, model, opt, x, y, key)
        weights = [given.weights for _, given in used][::2]
        assert weights[0].min() < weights[0].max()
        agree(used, slow_yopo(twin, x, y, key, "linf", 0.025, 2, 2, weigh=weights.__getitem__))


def test_every_outcome_of_yopo_is_clipped_on_its_own():
    model, twin, (x, y, key) = network("gn"), network("gn"), batch()
    used = train_step(YOPO(0.1, outer=2), model, plain_sgd(model, ENGM, alpha=0.05), x, y, key)
    total = [torch.zeros_like(p) for p in twin.parameters()]
    for k, (outcome, _) in enumerate(used):
        if k % 2:
            slope = dl_df0(twin, used[k - 1][0].x_adv, y)
            losses = (twin.block1[0](outcome.x_adv) * slope).flatten(1).sum(1)
        else:
            losses = ce(twin(outcome.x_adv), y)
        for loss in losses:
            grads = torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True, allow_unused=True)
            norm_of_all = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
            for t, g in zip(total, grads, strict=True):
                t += 0 if g is None else min(0.05 / norm_of_all, 1) * g / len(x)
    for p, q, t in zip(model.parameters(), twin.parameters(), total, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.1 * t, rtol=0, atol=1e-9)


def dl_df0(model, x, y):
    h = model.block1[0](x).detach().requires_grad_()
    return torch.autograd.grad(ce(model[1:](model.block1[1:](h)), y).sum(), h)[0]


def test_yopo_with_a_scaled_loss():
    models, kept = [network(), network()], []
    for model, scaler in zip(models, (None, torch.amp.GradScaler("cpu", 2.0**10)), strict=True):
        kept.append(train_step(YOPO(0.1, outer=2), model, plain_sgd(model), *batch(), scaler=scaler))
    agree(kept[0], [(outcome.x_adv, outcome.losses.detach()) for outcome, _ in kept[1]])
    same(*models)


def test_an_overflow_leaves_the_example_alone():
    model, (x, y, key) = network("gn"), batch()
    passes = YOPO(0.1, outer=1).passes(model, x, y, key)
    first = next(passes)
    (first.losses * torch.tensor([1.0, 1e308, 1, 1, 1, 1]).double() * 10).sum().backward()
    second = next(passes)
    assert second.losses[1] == 0
    assert second.x_adv[1].equal(first.x_adv[1])
    assert (second.losses != 0).sum() == 5


@both_norms
@pytest.mark.parametrize("factor", [1, 0])
def test_yopo_stays_within_the_threat_model(norm, factor):
    eps, model = EPS[norm] * factor, network(dtype=torch.float32)
    method, opt = YOPO(eps, norm=norm), plain_sgd(model)
    x, y, key = batch(dtype=torch.float32)
    before = x.clone()
    used = train_step(method, model, opt, x, y, key)
    assert len(used) == 10
    for outcome, _ in used:
        delta = (outcome.x_adv - x).flatten(1)
        norms = torch.linalg.vector_norm(delta, ord={"linf": torch.inf, "l2": 2}[norm], dim=1)
        assert norms.max() <= eps + 1e-6  # roundings of x + delta
        assert 0 <= outcome.x_adv.min() <= outcome.x_adv.max() <= 1
    assert x.equal(before)
    assert method.state_dict() == {}


def test_yopo_runs_the_first_layer_alone_for_its_steps():
    model, calls = network(), []
    for name in ("block1.0", "block1.1", "head"):
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: calls.append(name))
    train_step(YOPO(0.1, outer=4, inner=3), model, plain_sgd(model), *batch())
    assert [calls.count(name) for name in ("block1.0", "block1.1", "head")] == [4 * (1 + 3 + 1), 4, 4]
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 3
    assert sum(len(module._forward_hooks) for module in model.modules()) == 3


def test_the_steps_of_yopo_are_no_news_for_batch_norm():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).double()
    train_step(YOPO(0.1, outer=4, inner=3), model, plain_sgd(model), *batch())
    assert model[0].num_batches_tracked == 4 * 2  # the losses and what takes their place


def test_yopo_errors():
    for make, message in (
        (lambda: YOPO(-1), "eps is -1"),
        (lambda: YOPO(0.1, float("nan")), "step_size is nan"),
        (lambda: YOPO(0.1, outer=0), "outer and inner are 0 and 3"),
        (lambda: YOPO(0.1, inner=0), "outer and inner are 5 and 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(RuntimeError, match="run their backward pass"):
        list(YOPO(0.1).passes(network(), *batch()))
    with pytest.raises(ConfigError, match="no module 'stem'"):
        next(YOPO(0.1, first_layer="stem").passes(network(), *batch()))
    model = network()
    model.block1[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="all frozen"):
        next(YOPO(0.1).passes(model, *batch()))


# The first layer


class Patches(nn.Module):
    """Has a parameter of its own, is called before its first layer, and works in place on that one's output."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.ones(3))
        self.unused = nn.Linear(2, 2)
        self.project = nn.Conv2d(1, 3, 4, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.project(2 * x)).mean((2, 3)) + self.offset


def test_first_layer_is_the_first_that_returns():
    torch.manual_seed(0)
    model, x = Patches(), torch.rand(2, 1, 8, 8)
    assert first_output(model, None, x).equal(model.project(2 * x))
    assert first_output(model, "act", x).equal(model.project(2 * x).relu())
    assert not any(module._forward_hooks for module in model.modules())


def test_pixels_are_normalised_before_the_first_layer():
    model, (x, _, _) = network(mean=[0.4], std=[0.2]), batch()
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(first_output(model, None, x), conv((x - 0.4) / 0.2))


def test_the_gradient_is_that_before_layers_in_place():
    torch.manual_seed(0)
    model, x = Patches(), torch.rand(2, 1, 8, 8)
    y, key = torch.tensor([0, 2]), Key(0, 0, torch.arange(2))
    passes = YOPO(0.1, outer=1, inner=1).passes(model, x, y, key)
    first = next(passes)
    first.losses.sum().backward()
    h = model.project(2 * first.x_adv).detach().requires_grad_()
    (expected,) = torch.autograd.grad(ce(h.relu().mean((2, 3)) + model.offset, y).sum(), h)
    second = next(passes)
    products = (model.project(2 * second.x_adv) * expected).flatten(1).sum(1)
    torch.testing.assert_close(second.losses, products)
    assert not (h > 0).all()


def test_a_model_without_a_first_layer():
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1))
    with pytest.raises(ConfigError, match="any module with parameters, was not called"):
        first_output(model, None, torch.rand(2, 3))
    with pytest.raises(ConfigError, match="unused, was not called"), at_first_layer(Patches(), "unused", print):
        pass


def test_outcomes_have_what_the_optimizers_need():
    for method in (FreeAT(0.1, replays=1), YOPO(0.1, outer=1)):
        assert not method.single_pass
        for optimizer in (NENGM, ENGM):
            method.needs_input_grad, model = optimizer.info.needs_inputs, network("gn")
            for outcome, _ in train_step(method, model, plain_sgd(model, optimizer), *batch()):
                assert isinstance(outcome, StepOutput)
                assert outcome.x_adv.requires_grad == (optimizer.info.needs_inputs or isinstance(method, FreeAT))
