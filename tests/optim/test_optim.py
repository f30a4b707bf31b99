"""Outer optimisers: against torch.optim.SGD, and against the explicit sum of clipped gradients."""

import copy
import math
import pickle

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, same_bits
from torch import nn
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.optim import OPTIMIZERS

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def network(norm="gn", dtype=torch.float32):
    return cnn4(norm, dtype)


def batch(n=7, dtype=torch.float32, seed=1):
    return images_and_labels(n, seed, dtype)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    x.requires_grad_()
    used = optimizer.backward(losses_of(model, x, y), inputs=x)
    optimizer.step()
    return used


def trained(make, steps=4, norm="bn", **batch_options):
    model = network(norm)
    optimizer = make(model.parameters())
    for seed in range(steps):
        step(model, optimizer, *batch(seed=seed, **batch_options))
    return model


def trained_by_torch(steps=4, norm="bn", **options):
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), **SGD, **options)
    for seed in range(steps):
        x, y = batch(seed=seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{}, {"nesterov": True}])
def test_without_clipping_it_is_torch_sgd(options):
    expected = trained_by_torch(**options)
    assert same_bits(trained(lambda p: MSGD(p, **SGD, **options)), expected)
    assert same_bits(trained(lambda p: ENGM(p, **SGD, alpha=math.inf, **options)), expected)
    close = trained(lambda p: ENGM(p, **SGD, alpha=1e30, **options))
    for a, b in zip(close.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "training"), [("gn", True), ("bn", True), ("bn", False)])
@pytest.mark.parametrize("share", [0, 3, 7])
def test_engm_is_the_sum_of_clipped_gradients(norm, training, share):
    model, (x, y) = network(norm, torch.float64).train(training), batch(dtype=torch.float64)
    params = list(model.parameters())
    rows = []
    losses = losses_of(model, x, y)
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    rows = torch.stack(rows)
    norms_of_rows = rows.norm(dim=1).sort(descending=True).values.tolist()
    alpha = (
        sum([2 * norms_of_rows[0], *norms_of_rows, 0][share : share + 2]) / 2
    )  # `share` of the 7 examples are longer
    weights = (alpha / rows.norm(dim=1)).clamp(max=1)
    expected = (weights[:, None] * rows).mean(dim=0)
    theta = torch.cat([p.detach().flatten() for p in params])

    norms = "exact" if norm == "bn" and training else "auto"
    optimizer = ENGM(params, lr=0.1, momentum=0.9, weight_decay=0.01, alpha=alpha, norms=norms)
    used = optimizer.backward(losses)
    got = torch.cat([p.grad.flatten() for p in params])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(used.norms, rows.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(used.weights, weights, rtol=1e-10, atol=0)
    assert (used.weights * used.norms).max() <= alpha * (1 + 1e-6)
    assert not used.norms.requires_grad
    assert not used.weights.requires_grad
    assert (used.weights < 1).sum() == share

    optimizer.step()  # weight decay is outside the clipped sum
    v = expected + 0.01 * theta
    moved = torch.cat([p.detach().flatten() for p in params])
    torch.testing.assert_close(moved, theta - 0.1 * v, rtol=0, atol=1e-12)


def test_float32_weights_do_not_exceed_alpha():
    model = network("bn")
    used = step(model, ENGM(model.parameters(), alpha=0.3), *batch(32))
    assert (used.weights * used.norms).max() <= 0.3 * (1 + 1e-6)
    assert (used.weights <= 1).all()
    assert used.weights.dtype == torch.float32


def test_gradients_add_up_over_calls():
    model = network("gn")
    optimizer = ENGM(model.parameters(), alpha=1.0)
    optimizer.backward(losses_of(model, *batch(seed=1)))
    first = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    optimizer.backward(losses_of(model, *batch(seed=2)))
    second = [p.grad.clone() for p in model.parameters()]
    optimizer.backward(losses_of(model, *batch(seed=1)))
    for p, a, b in zip(model.parameters(), first, second, strict=True):
        torch.testing.assert_close(p.grad, a + b, rtol=0, atol=1e-6)


def test_alpha_is_joint_over_groups():
    model, (x, y) = network(), batch()
    one = ENGM(model.parameters(), lr=0.1, alpha=0.5)
    used_one = one.backward(losses_of(model, x, y))
    groups = [{"params": model.block1.parameters()}, {"params": [*model.block2.parameters()], "lr": 0.5}]
    groups.append({"params": [*model.dense.parameters(), *model.head.parameters()], "weight_decay": 0.0})
    two = ENGM(groups, lr=0.1, alpha=0.5)
    used_two = two.backward(losses_of(model, x, y))
    torch.testing.assert_close(used_two.norms, used_one.norms, rtol=1e-6, atol=0)
    two.alpha = 0.25
    assert [group["alpha"] for group in two.param_groups] == [0.25] * 3
    torch.testing.assert_close(two.backward(losses_of(model, x, y)).weights, used_two.weights / 2)


def test_added_groups_take_alpha():
    model = network()
    for part in (model.block2, model.dense, model.head):
        part.requires_grad_(False)
    optimizer = ENGM(model.block1.parameters(), alpha=0.5)
    before = optimizer.backward(losses_of(model, *batch())).norms
    optimizer.alpha = 0.7
    optimizer.add_param_group({"params": [*model.block2.requires_grad_().parameters()]})
    assert optimizer.alpha == 0.7
    assert optimizer.param_groups[1]["alpha"] == 0.7
    assert (optimizer.backward(losses_of(model, *batch())).norms > before).all()


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, -math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        ENGM(network().parameters(), alpha=alpha)
    optimizer = ENGM(network().parameters(), alpha=2.0)
    with pytest.raises(ConfigError, match="alpha"):
        optimizer.alpha = alpha
    assert optimizer.alpha == 2.0


def test_schedules_leave_alpha_alone():
    model = network()
    optimizer = ENGM(model.parameters(), lr=1.0, alpha=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    for lr in (1.0, 0.1, 0.01):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        step(model, optimizer, *batch())
        schedule.step()
    assert optimizer.alpha == 0.5
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=10)


@pytest.mark.parametrize("way", ["state_dict", "torch.save", "deepcopy", "pickle"])
def test_training_resumes_after_a_copy(way, tmp_path):
    model = network()
    optimizer = ENGM(model.parameters(), lr=0.1, alpha=0.5)
    step(model, optimizer, *batch(seed=1))
    optimizer.alpha = 0.4
    if way in ("deepcopy", "pickle"):  # together, so that the copy's parameters are the copy's
        pair = (model, optimizer)
        twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    else:
        twin = copy.deepcopy(model)
        other = ENGM(twin.parameters(), lr=0.3, momentum=0.1, alpha=9.0)
        state = copy.deepcopy(optimizer.state_dict())  # torch hands out the buffers themselves
        if way == "torch.save":
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        other.load_state_dict(state)
    assert other.alpha == 0.4
    for m, o in ((model, optimizer), (twin, other)):
        step(m, o, *batch(seed=2))
    assert same_bits(model, twin)


def test_state_of_plain_sgd_keeps_ones_own_alpha():
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8)
    optimizer = ENGM(model.parameters(), lr=0.1, alpha=0.5)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.alpha == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.3
    step(model, optimizer, *batch())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bad_losses_change_nothing(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters(), 0.1)
    step(model, optimizer, *batch())
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    values = copy.deepcopy(model.state_dict())
    x, y = batch()
    losses = losses_of(model, x.requires_grad_(), y)
    for bad, error in (
        (losses * torch.tensor([1, 1, math.nan, 1, 1, 1, 1]), NonFiniteError),
        (losses * math.inf, NonFiniteError),
        (losses.mean(), ValueError),
        (losses[:, None], ValueError),
        (losses.detach(), ValueError),
        (losses[:0], ValueError),
    ):
        with pytest.raises(error):
            optimizer.backward(bad, inputs=x)
    assert all(p.grad.equal(grads[n]) for n, p in model.named_parameters())
    assert all(values[n].equal(t) for n, t in model.state_dict().items())


def test_a_gradient_that_is_not_finite_changes_nothing():
    w = nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = ENGM([w], alpha=1.0)
    with pytest.raises(NonFiniteError, match=r"gradient norms of examples"):
        optimizer.backward(w.sqrt())  # the derivative at 0 is infinite
    assert w.grad is None


def test_all_weights_are_one_without_clipping():
    model = network()
    assert MSGD(model.parameters(), lr=0.1).backward(losses_of(model, *batch())) is None
    assert ENGM(model.parameters(), alpha=math.inf).backward(losses_of(model, *batch())) is None
