"""Steps along gradients that `backward(losses)` did not make are errors, for optimisers that weigh examples."""

import copy
import gc

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, same_bits, theta
from torch import nn

from pyengm.optim import CLOSURE_OPTIMIZERS, ENGM, MSGD, OPTIMIZERS

WEIGHERS = [kind for kind in OPTIMIZERS.values() if kind.info.weighs_examples]
OTHERS = [kind for kind in OPTIMIZERS.values() if not kind.info.weighs_examples]
REFUSED = pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)")


def batch(seed=1, n=6):
    x, y = images_and_labels(n, seed, torch.float32)
    return x.requires_grad_(), y


def network():
    return cnn4("gn", torch.float32)


def plain(model, optimizer):
    losses_of(model, *batch()).mean().backward()


def own(model, optimizer, **options):
    x, y = batch()
    optimizer.backward(losses_of(model, x, y), inputs=x, **options)


def closure(model, optimizer):
    def compute():
        optimizer.zero_grad()
        plain(model, optimizer)

    optimizer.step(compute)


def by_hand(model, optimizer):
    for p, g in zip(model.parameters(), grads_of(model), strict=True):
        p.grad = g


def grads_of(model):
    return torch.autograd.grad(losses_of(model, *batch()).mean(), list(model.parameters()))


def own_then_plain(model, optimizer):
    own(model, optimizer)
    plain(model, optimizer)


def plain_then_own(model, optimizer):
    plain(model, optimizer)
    own(model, optimizer)


def an_attack_left_gradients(model, optimizer):
    optimizer.zero_grad()
    own(model, optimizer)
    optimizer.step()
    losses_of(model, *batch()).sum().backward()  # of a loop that calls zero_grad nowhere behind the attack
    own(model, optimizer)


def replaced(model, optimizer):
    own(model, optimizer)
    by_hand(model, optimizer)


def a_regulariser_of_one_weight(model, optimizer):
    own(model, optimizer)
    next(model.parameters()).square().sum().backward()


def emptied_by_the_model(model, optimizer):
    own(model, optimizer)
    model.zero_grad()
    plain(model, optimizer)


def with_a_kept_graph(model, optimizer):
    own(model, optimizer)
    losses_of(model, *batch()).mean().backward(create_graph=True)


WRONG = [
    plain,
    closure,
    by_hand,
    own_then_plain,
    plain_then_own,
    an_attack_left_gradients,
    replaced,
    a_regulariser_of_one_weight,
    emptied_by_the_model,
    with_a_kept_graph,
]


@pytest.mark.parametrize("kind", WEIGHERS)
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("after", ["at first", "later"])
def test_wrong_habits(kind, wrong, after):
    model = network()
    optimizer = kind(model.parameters())
    if after == "later":
        own(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
    before = copy.deepcopy(model)
    with REFUSED:
        wrong(model, optimizer)
        before = copy.deepcopy(model)
        optimizer.step()
    assert same_bits(model, before)
    optimizer.zero_grad()  # and the right way goes on
    own(model, optimizer)
    optimizer.step()
    assert not same_bits(model, before)


@pytest.mark.parametrize("kind", OTHERS)
def test_optimisers_without_weights_take_any_gradient(kind):
    model, twin = network(), network()
    first, second = kind(model.parameters()), kind(twin.parameters())
    plain(model, first)
    first.step()
    own(twin, second)
    second.step()
    torch.testing.assert_close(theta(model), theta(twin), rtol=0, atol=1e-6)


def clipped(model, optimizer):
    own(model, optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def clipped_between(model, optimizer):
    own(model, optimizer, accumulate=2)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    own(model, optimizer, accumulate=2)


def after_an_attack(model, optimizer):
    losses_of(model, *batch()).sum().backward()
    optimizer.zero_grad()
    own(model, optimizer)


def after_an_attack_emptied_by_the_model(model, optimizer):
    losses_of(model, *batch()).sum().backward()
    model.zero_grad(set_to_none=False)
    own(model, optimizer)


def zeros_stay(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        own(model, optimizer)


def twice(model, optimizer):
    own(model, optimizer)
    optimizer.step()


def in_a_closure(model, optimizer):
    optimizer.step(lambda: own(model, optimizer))


def with_a_frozen_part(model, optimizer):
    model.block1.requires_grad_(False)
    own(model, optimizer)
    model.block1.requires_grad_()


def accepted(model, optimizer):
    own(model, optimizer)
    for p in model.parameters():
        p.grad = 2 * p.grad
    optimizer.accept_grads()


def after_a_skipped_step(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        own(model, optimizer, scaler=scaler)
        next(model.parameters()).grad.mul_(factor)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**3


RIGHT = [
    clipped,
    clipped_between,
    after_an_attack,
    after_an_attack_emptied_by_the_model,
    zeros_stay,
    twice,
    in_a_closure,
    with_a_frozen_part,
    accepted,
    after_a_skipped_step,
]


@pytest.mark.parametrize("kind", WEIGHERS)
@pytest.mark.parametrize("right", RIGHT)
def test_right_habits(kind, right):
    model = network()
    before = copy.deepcopy(model)
    optimizer = kind(model.parameters())
    right(model, optimizer)
    optimizer.step()
    assert not same_bits(model, before)


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_zero_gradients_need_no_weights(kind):
    """torch.distributed.checkpoint takes such a step to create the state."""
    model = network()
    before = copy.deepcopy(model)
    optimizer = kind(model.parameters(), weight_decay=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert same_bits(model, before)


@pytest.mark.parametrize("kind", CLOSURE_OPTIMIZERS.values())
def test_zero_gradients_with_a_closure_optimiser(kind):
    model = network()
    optimizer = kind(model.parameters())
    with pytest.raises(RuntimeError, match="step\\(closure\\)"):
        optimizer.step()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert optimizer.step() is None
    plain(model, optimizer)
    with pytest.raises(RuntimeError, match="step\\(closure\\)"):
        optimizer.step()


def test_a_copy_and_its_original_watch_their_own_models():
    model = network()
    optimizer = ENGM(model.parameters(), alpha=0.5)
    own(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    optimizer.zero_grad()
    own(twin, other)
    other.step()
    other.zero_grad()
    plain(twin, other)
    with REFUSED:
        other.step()


def test_hooks_leave_with_the_optimiser():
    model = network()
    optimizer = ENGM(model.parameters(), alpha=0.5)
    own(model, optimizer)
    assert all(p._post_accumulate_grad_hooks for p in model.parameters())
    del optimizer
    gc.collect()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    msgd = MSGD(model.parameters())
    own(model, msgd)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_sparse_gradients():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = ENGM(table.parameters(), alpha=0.5, momentum=0.0, weight_decay=0.0)
    index = torch.tensor([1, 2, 2])
    optimizer.backward(table(index).sum(1))
    optimizer.step()
    optimizer.zero_grad()
    table(index).sum().backward()
    with REFUSED:
        optimizer.step()


def test_two_optimisers_share_a_model():
    """The norms are over the whole model, and each optimiser updates its part."""
    model, whole = network(), network()
    head = list(model.head.parameters())
    body = [p for p in model.parameters() if not any(p is q for q in head)]
    first = ENGM(body, alpha=0.5, weight_decay=0.0)
    second = torch.optim.SGD(head, 0.1, 0.9)
    single = ENGM(whole.parameters(), alpha=0.5, weight_decay=0.0)
    x, y = batch()
    with pytest.raises(ValueError, match=r"params=model\.parameters\(\)"):
        first.backward(losses_of(model, x, y))
    used = first.backward(losses_of(model, x, y), params=model)
    first.step()
    second.step()
    expected = single.backward(losses_of(whole, x, y))
    single.step()
    torch.testing.assert_close(used.norms, expected.norms)
    torch.testing.assert_close(theta(model), theta(whole))
