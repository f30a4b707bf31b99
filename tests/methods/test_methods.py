"""Training methods: losses by their formulas, attacks by their keys, nothing shared between batches."""

import pytest
import torch
from helpers.small_problems import buffers, cnn4, images_and_labels
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.methods import METHODS, PGDAT, Natural
from pyengm.ops import Key


def network(norm="bn", dtype=torch.float32):
    return cnn4(norm, dtype)


def batch(n=6, seed=1, dtype=torch.float32):
    x, y = images_and_labels(n, seed, dtype)
    return x, y, Key(3, seed, torch.arange(n) * 10)


def test_natural_is_the_cross_entropy():
    model, (x, y, key) = network(), batch()
    outcome = Natural()(model, x, y, key)
    logits = network()(x)
    assert outcome.losses.equal(F.cross_entropy(logits, y, reduction="none"))
    assert outcome.logits.equal(logits)
    assert outcome.x_adv.equal(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bn", ["eval", "train", "batch_stats"])
def test_pgd_at_is_the_cross_entropy_on_the_attack(norm, bn):
    model, (x, y, key) = network(), batch()
    before = x.clone()
    outcome = PGDAT(0.1, 0.03, 3, norm=norm, bn=bn)(model, x, y, key)
    twin = network()
    x_adv = PGD(0.1, 0.03, 3, norm=norm, bn=bn)(twin, x, y, key=key)
    logits = twin(x_adv)
    assert outcome.x_adv.equal(x_adv)
    assert outcome.logits.equal(logits)
    assert outcome.losses.equal(F.cross_entropy(logits, y, reduction="none"))
    assert not outcome.x_adv.requires_grad
    assert x.equal(before)
    # The training pass updates the running statistics once, the attack only in its mode "train".
    assert model.block1[1].num_batches_tracked == (4 if bn == "train" else 1)
    assert all(b.equal(buffers(twin)[name]) for name, b in model.named_buffers())


def test_pgd_at_attacks_in_ten_steps_of_cross_entropy_from_a_random_start():
    attack = PGDAT(0.1, 0.03).attack
    assert (attack.steps, attack.step_size, attack.bn, attack.random_start, attack.restarts) == (
        10,
        0.03,
        "eval",
        True,
        1,
    )
    assert attack.loss is PGD(0.1, 0.03, 1).loss


@pytest.mark.parametrize("method", [Natural(), PGDAT(0.1, 0.03, 2)])
def test_model_is_left_in_training_mode_with_all_its_gradients(method):
    model, (x, y, key) = network(), batch()
    losses = method(model, x, y, key).losses
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert losses.shape == (6,)
    losses.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batches_share_nothing():
    method, model = PGDAT(0.1, 0.03, 2), network("gn")
    alone = []
    for seed in (1, 2):
        alone.append(method(model, *batch(seed=seed)))
        model.zero_grad()
        alone[-1].losses.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    kept = [outcome.x_adv.clone() for outcome in alone]
    model.zero_grad()
    both = [method(model, *batch(seed=seed)) for seed in (1, 2)]
    both[0].losses.sum().backward(retain_graph=True)  # after the next batch was attacked
    model.zero_grad()
    both[1].losses.sum().backward()
    assert all(p.grad.equal(expected[name]) for name, p in model.named_parameters())
    assert both[0].x_adv.equal(kept[0])
    assert both[1].x_adv.equal(kept[1])


def test_one_method_takes_batches_of_any_kind():
    method = PGDAT(0.1, 0.03, 2)
    for n, dtype in ((6, torch.float32), (6, torch.float64), (2, torch.float64), (6, torch.float32)):
        model, (x, y, key) = network("gn", dtype), batch(n, dtype=dtype)
        outcome = method(model, x, y, key)
        assert outcome.x_adv.dtype == outcome.losses.dtype == dtype
        assert outcome.x_adv.equal(PGD(0.1, 0.03, 2)(model, x, y, key=key))


def test_registry():
    assert METHODS["natural"] is Natural
    assert METHODS["pgd_at"] is PGDAT
