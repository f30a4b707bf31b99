"""Threat models and random starts in plain torch, for tests that write a method down a second time."""

from contextlib import contextmanager

import torch
from helpers.small_problems import cnn4, images_and_labels
from torch import nn
from torch.nn import functional as F

from pyengm.ops import Key, Purpose, philox_normal, philox_uniform

EPS = {"linf": 0.1, "l2": 0.5}
MODES = {"eval": 0, "train": 1, "batch_stats": 0}  # updates of the running statistics by a forward pass of the attack


def network(norm="bn", dtype=torch.float64):
    model = cnn4(norm, dtype)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 1, 8, 8, dtype=dtype))  # running statistics that differ from the initial ones
    return model


def batch(n=6, seed=1, epoch=2, dtype=torch.float64):
    x, y = images_and_labels(n, seed, dtype)
    x[:, :, 0, :4] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # pixels at the bounds
    return x, y, Key(3, epoch, torch.arange(n) * 10 + 5)


def norms_of(t):
    return t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1))


def noise(x, key, norm, purpose=Purpose.START, draw=0):
    """Uniform in the ball of radius EPS[norm]."""
    named = {"seed": key.seed, "epoch": key.epoch}
    if norm == "linf":
        return EPS[norm] * (2 * philox_uniform(key.index, x.shape[1:], purpose=purpose, draw=draw, **named).to(x) - 1)
    direction = philox_normal(key.index, x.shape[1:], purpose=purpose, draw=draw, **named).to(x)
    draw += (purpose - Purpose.START) * 2**12
    radius = philox_uniform(key.index, (1, 1, 1), purpose=Purpose.RADIUS, draw=draw, **named).to(x)
    return EPS[norm] * direction / norms_of(direction) * radius ** (1 / x[0].numel())


def project(x_adv, x, norm):
    delta, eps = x_adv - x, EPS[norm]
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / norms_of(delta)).clamp(max=1)
    return (x + delta).clamp(0, 1)


def step(x_adv, gradient, x, norm, size):
    return project(x_adv + size * (gradient.sign() if norm == "linf" else gradient / norms_of(gradient)), x, norm)


def gradient_at(model, x, y):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def fosc(x_adv, gradient, origin, norm):
    """FOSC of each example, (n,), summed pixel by pixel."""
    values = []
    for point, g, center in zip(x_adv, gradient, origin, strict=True):
        reach = sum(abs(v) for v in g.flatten().tolist())
        if norm == "l2":
            reach = sum(v * v for v in g.flatten().tolist()) ** 0.5
        moved = sum(d * v for d, v in zip((point - center).flatten().tolist(), g.flatten().tolist(), strict=True))
        values.append(EPS[norm] * reach - moved)
    return torch.tensor(values, dtype=x_adv.dtype)


def check_in_threat_model(x_adv, x, norm):
    distance = (x_adv - x).abs().amax() if norm == "linf" else norms_of(x_adv - x).max()
    assert distance <= EPS[norm] + 1e-9
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def gradients(losses, model):
    return torch.autograd.grad(losses.mean(), list(model.parameters()))


def check_pass(outcome, expected, x_adv, model, twin):
    """Losses, images, gradients and running statistics of a method, and of its formula in a twin of the model."""
    torch.testing.assert_close(outcome.x_adv.detach(), x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(outcome.losses, model), gradients(expected, twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-11)
    theirs = statistics(twin)
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, theirs[name], rtol=1e-9, atol=1e-12)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@contextmanager
def mode(twin, bn):
    """The twin in the mode of an attack, with running statistics that no later pass writes to."""
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [dict(module.named_buffers()) for module in norms]
    for module, buffers in zip(norms, kept, strict=True):
        for name, b in buffers.items():
            setattr(module, name, b.clone())
    twin.train(bn != "eval")
    yield
    twin.train()
    for module, buffers in zip(norms, kept, strict=True):
        for name, b in buffers.items():
            setattr(module, name, getattr(module, name).clone() if bn == "train" else b)
