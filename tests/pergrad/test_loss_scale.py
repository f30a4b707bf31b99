"""The habit of mixed precision, backward(scaler.scale(losses)), is refused; other factors are the user's."""

import copy

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, theta

import pyengm
from pyengm.optim import AENGM, ENGM, MSGD

REFUSED = pytest.raises(ValueError, match=r"backward\(losses, scaler=scaler\)")


def problem():
    x, y = images_and_labels(6, 1, torch.float32)
    return cnn4("gn", torch.float32), x.requires_grad_(), y


@pytest.mark.parametrize("kind", [MSGD, ENGM, AENGM])
@pytest.mark.parametrize("scale", [65536.0, 1000.0])
def test_scaled_losses(kind, scale):
    model, x, y = problem()
    optimizer, scaler = kind(model.parameters()), torch.amp.GradScaler("cpu", init_scale=scale)
    before = theta(model)
    ways = [
        scaler.scale,
        lambda losses: scaler.scale([losses])[0],
        lambda losses: scaler.scale(losses) / 4,
        lambda losses: scaler.scale(losses) / torch.tensor(4.0),
        lambda losses: scaler.scale(losses).view(-1).float().clone(),
        lambda losses: scaler.scale(losses.view(2, 3)).mean(1),
    ]
    for way in ways:
        with REFUSED:
            optimizer.backward(way(losses_of(model, x, y)), inputs=x)
    assert all(p.grad is None for p in model.parameters())
    optimizer.backward(losses_of(model, x, y), inputs=x, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert not theta(model).equal(before)


def test_after_unscaled_ones():
    model, x, y = problem()
    optimizer, scaler = ENGM(model.parameters()), torch.amp.GradScaler("cpu")
    optimizer.backward(losses_of(model, x, y))
    with REFUSED:
        optimizer.backward(scaler.scale(losses_of(model, x, y)))


def test_a_scale_that_is_divided_out():
    model, x, y = problem()
    optimizer, scaler = ENGM(model.parameters(), alpha=0.5), torch.amp.GradScaler("cpu")
    expected = optimizer.backward(losses_of(model, x, y)).norms
    found = optimizer.backward(scaler.scale(losses_of(model, x, y)) / scaler.get_scale()).norms
    torch.testing.assert_close(found, expected)
    scale = torch.tensor(scaler.get_scale())
    torch.testing.assert_close(optimizer.backward(scaler.scale(losses_of(model, x, y)) / scale).norms, expected)


def test_factors_of_ones_own():
    model, x, y = problem()
    optimizer = ENGM(model.parameters(), alpha=0.5)
    scaler, off = torch.amp.GradScaler("cpu", init_scale=8.0), torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(torch.ones(()))
    expected = optimizer.backward(losses_of(model, x, y)).norms
    for factor in (8.0, torch.tensor(3.0), torch.full((6,), 8.0), 0.5, 65536.0):
        found = optimizer.backward(losses_of(model, x, y) * factor).norms
        torch.testing.assert_close(found, expected * factor)
        torch.testing.assert_close(optimizer.backward(factor * losses_of(model, x, y)).norms, expected * factor)
    torch.testing.assert_close(optimizer.backward(off.scale(losses_of(model, x, y))).norms, expected)


def test_clipped_backward():
    model, x, y = problem()
    twin, scaler = copy.deepcopy(model), torch.amp.GradScaler("cpu")
    with REFUSED:
        pyengm.clipped_backward(scaler.scale(losses_of(model, x, y)), model, 0.5)
    found = pyengm.clipped_backward(losses_of(model, x, y), model, 0.5, scaler=scaler, accumulate=2)
    expected = pyengm.clipped_backward(losses_of(twin, x, y), twin, 0.5)
    torch.testing.assert_close(found.norms, expected.norms)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad / scaler.get_scale(), q.grad / 2)
